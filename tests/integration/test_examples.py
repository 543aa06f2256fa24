"""Every example of scripts/examples runs as it stands, and its README lists every one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, end_group

EXAMPLES = ROOT / "scripts" / "examples"

pytestmark = pytest.mark.slow


def output_of(name: str, *arguments: str) -> str:
    """What an example prints."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=280)
    finally:
        end_group(process)
    assert process.returncode == 0, err[-3000:]
    return out


def test_its_readme_lists_every_example() -> None:
    listed = re.findall(r"^- \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_the_sampler_chooses_in_a_plain_study() -> None:
    out = output_of("optuna_sampler.py")
    assert "v_optimal" in out and re.search(r"^\d+ trials, \d+ gpu_seconds$", out, re.MULTILINE)


@pytest.mark.ray
def test_a_search_runs_on_records_of_ones_own(tmp_path: Path) -> None:
    out = output_of("own_records.py", str(tmp_path / "own"))
    assert "report.html" in out and len(list((tmp_path / "own/store/observations").glob("*"))) >= 4
