"""A report of thousands of runs: linear in them, small, and honest about what it shows."""

from __future__ import annotations

import cProfile
import json
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from pmlray.study.findings.memft_pairs import memft_pairs
from pmlray.study.findings.result import SearchResult
from pmlray.study.findings.stubborn_tokens import token_tallies
from pmlray.study.report.figures.style import MOST_DOTS, Panel, thinned
from pmlray.study.report.search_report import write_report
from pmlray.study.report.tables import MOST_ROWS, Table
from tests.unit.study.conftest import Page, make_observation

MOST_BYTES = 3_000_000


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """SVG files are drawn of the same rows, by another program."""
    monkeypatch.setattr(Panel, "svg", lambda self, spec: "<svg/>")


def large(result: SearchResult, n: int) -> SearchResult:
    """The same search with n runs of its law in rounds of six, texts of their own, and a pair of
    MemFT for every tenth; the laws are those of before, whose fit is no part of a report."""
    rng = np.random.default_rng(5)
    points = [o.point for o in result.law_observations]
    runs = [
        replace(make_observation(p, i // len(points), i // 6, rng), run_key=f"{i:032x}")
        for i, p in enumerate(islice(cycle(points), n))
    ]
    paired = [
        replace(o, run_key=f"{method}{o.run_key}", method=method, phase="memft")
        for o in runs[::10]
        for method in ("sft", "memft_ot")
    ]
    observations = (*runs, *paired)
    return replace(result, observations=observations, pairs=memft_pairs(observations))


def calls(result: SearchResult, folder: Path) -> int:
    """How many calls of functions writing it takes, which no load of the machine changes."""
    profile = cProfile.Profile()
    profile.runcall(write_report, result, folder, {})
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.usefixtures("short_pages")
def test_twice_the_runs_take_no_more_than_twice_the_calls(
    result: SearchResult, tmp_path: Path
) -> None:
    write_report(result, tmp_path, {})
    small, medium, twice = (calls(large(result, n), tmp_path) for n in (20, 1100, 2200))
    assert (twice - small) / (medium - small) < 2.2


def test_a_page_of_thousands_of_runs_stays_small_and_says_what_it_leaves_out(
    result: SearchResult, tmp_path: Path
) -> None:
    page = write_report(large(result, 2500), tmp_path, {})
    assert page.stat().st_size < MOST_BYTES
    read = Page(page.read_text("utf-8"))
    assert f"The first {MOST_ROWS} of 3,000 rows are shown; all of them are in report.json" in (
        read.text
    )
    assert f"{MOST_DOTS:,} of 2,500 runs are drawn, chosen at random" in read.text
    assert "300 of 2,500 runs are drawn, those chosen first" in read.text
    assert "60 of 250 pairs are drawn" in read.text
    assert "each bar is 7 rounds" in read.text
    stored = json.loads((tmp_path / "report.json").read_text())
    assert len(stored["observations"]) == 3000 and len(stored["capacity"]) == 2500
    assert len(stored["memft"]) == 250


def test_rows_that_figures_share_are_in_the_page_once(result: SearchResult, tmp_path: Path) -> None:
    page = Page(write_report(large(result, 1000), tmp_path, {}).read_text("utf-8"))
    specs = {key: set(spec["datasets"]) for key, spec in page.specs().items()}
    for shared in (
        ("delta-by-length", "delta-by-rank", "predicted-measured", "residuals"),
        ("residuals-by-rank", "residuals-by-prediction", "residuals-by-sequence"),
        ("heat-final-loss", "heat-token-recall", "heat-exact-recall"),
        ("token-recall-by-loss", "exact-recall-by-loss"),
        ("stored-bits", "bits-per-param"),
    ):
        assert set.intersection(*(specs[key] for key in shared)), shared


def test_what_is_chosen_of_many_rows_is_a_fair_sample_and_always_the_same() -> None:
    rows = list(range(5000))
    chosen = thinned(rows, 1000)
    assert chosen == thinned(rows, 1000) == sorted(set(chosen)) and len(chosen) == 1000
    # Runs come in the order of cells and texts: none of the residues of a period is left out.
    for period in (2, 5, 18):
        counts = np.bincount(np.array(chosen) % period, minlength=period)
        assert counts.min() > 0.6 * 1000 / period
    assert thinned(rows, 5000) is rows


def test_a_tables_columns_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("t", ("a", "b"), tuple((i, "x" if i == 3 else None) for i in range(500)), "x.csv")
    assert table.numeric == (True, False) and table.numeric is table.numeric
    assert len(table.shown) == MOST_ROWS
    assert table.note == "The first 200 of 500 rows are shown; all of them are in x.csv."
    assert Table("t", ("a",), ((1,),)).note == ""


def test_tallies_of_many_texts_are_those_of_each(result: SearchResult) -> None:
    runs = [o for o in large(result, 60).observations if o.method == "sft"]
    together = {(t.sequence_id, t.position): t for t in token_tallies(runs)}
    for text in {o.sequence_id for o in runs}:
        alone = token_tallies([o for o in runs if o.sequence_id == text])
        for t in alone:
            whole = together[text, t.position]
            assert (whole.families_failed, whole.families) == (t.families_failed, t.families)
            assert whole.p_value == t.p_value
