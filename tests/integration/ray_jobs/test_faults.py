"""A search through a few faults; `scripts/bench/chaos/chaos.py` does many, of every kind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from scripts.bench.chaos.chaos import run_chaos

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.timeout(600)
def test_a_search_through_faults_loses_nothing_and_changes_no_bit(capsys) -> None:
    # Not pytest's folder: sockets' paths are limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pmlray-chaos-", dir="/tmp"))
    kinds = ["checkpoint cut short", "job's driver", "job stop"]
    try:
        found = run_chaos(folder, len(kinds), 0, 300, kinds, print, workers=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert found["faults"] == len(kinds)
    assert found["lost"] == 0 and found["duplicated"] == 0 and found["bit_identical"]
    assert found["observations"] == 24 and found["failed"] == []
    assert max(found["stop_seconds"]) <= 60
