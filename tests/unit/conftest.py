"""Shared by the unit tests: a search that validates without a network."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import typer.testing
from hypothesis import HealthCheck, settings
from markupsafe import Markup

from pmlray.config.prepared_search import PreparedSearch, prepare_search

# An example has 200 ms by hypothesis' wall clock, and drawing the first ten a second: on a busy
# machine a right answer comes later than that. What must be quick has a test of its CPU time.
settings.register_profile(
    "busy_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy_machine")

# Typer builds its whole tree of commands anew for every one that a test invokes.
typer.testing._get_command = cache(typer.testing._get_command)

# Known hub models resolve without the hub; tests of what it answers have one of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

# What the frameworks make when they are imported stays. Looking for garbage in it, meanwhile and
# again and again later, finds none.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


SEARCH = """\
name: unit
task: {kind: long_context, prompt_format: plain}
model: {id: tiny-random-llama, dtype: float32}
probe: {placement: mlp, layer: 1}
space:
  lora_rank: [1, 2, 4, 8, 16]
  seq_len: [16, 32, 64, 128]
  train_steps: [100]
design: {n_initial: 6, pack_size: 3}
budget: {gpu_seconds: 120, memft_gpu_seconds: 100}
memft: {n_points: 1, n_pairs: 2}
sequences: [0, 1]
seeds: [0]
law: {n_bootstrap: 50}
"""


@pytest.fixture
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the drawing code, which takes over a second to bundle: test_report.py and the
    tests in a browser look at whole ones."""
    monkeypatch.setattr(
        "pmlray.study.report.page.vega_bundle", lambda: Markup("window.vegaEmbed=0;")
    )


@pytest.fixture
def search_file(tmp_path: Path) -> Path:
    path = tmp_path / "unit.yaml"
    path.write_text(SEARCH)
    return path


@pytest.fixture
def make_search(search_file: Path) -> Callable[..., PreparedSearch]:
    def make(*overrides: str) -> PreparedSearch:
        return prepare_search(search_file, overrides)

    return make


@pytest.fixture
def make_placed_search(search_file: Path) -> Callable[..., PreparedSearch]:
    """Prepare the unit search with placements, a line each, in place of its probe and its grid."""
    head, _, rest = search_file.read_text().partition("probe:")
    rest = rest[rest.index("design:") :]

    def make(*placements: str, overrides: Sequence[str] = ()) -> PreparedSearch:
        lines = ["space:", "  placement:", *(f"    {named}" for named in placements)]
        lines += ["  lora_rank: [1, 4]", "  seq_len: [8, 16]", "  train_steps: [10]", ""]
        search_file.write_text(head + "\n".join(lines) + rest)
        return prepare_search(search_file, overrides)

    return make
