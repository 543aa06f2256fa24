"""`pmlray watch` tells from a comparison's store what the comparison itself tells."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pmlray.api.live_progress import shown_live
from pmlray.api.status import StudyStatus
from pmlray.api.stores import claim_comparison
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config.prepared_search import prepare_comparison
from pmlray.study.comparison.comparison_search import ComparisonSearch
from pmlray.study.comparison.progress import FollowedComparison
from pmlray.study.search.progress import Progress
from pmlray.types import PlannedRun
from tests.fakes import MemoryTracker, SyntheticRunner

SMOKE = Path(__file__).parents[3] / "searches" / "comparisons" / "smoke.yaml"
# 2 points, 3 methods: a tuning text at 2 rates, then 2 texts at the chosen one.
N_RUNS = 2 * 3 * (2 + 2)
runner = CliRunner()


def broken(run: PlannedRun) -> bool:
    return (run.method, run.point.lora_rank, run.sequence_id) == ("memft_rd", 8, 1)


def test_it_shows_what_the_comparison_shows(tmp_path: Path) -> None:
    spec, search = prepare_comparison(SMOKE, ["pack_size=6"])
    store, said = FileStore(tmp_path), list[Progress]()
    claim_comparison(tmp_path, spec)
    comparing = ComparisonSearch(spec, search, store, MemoryTracker(), 2, said.append)
    runs, followed = SyntheticRunner(store, fails=broken), FollowedComparison(spec, store)
    with store.driver_lock():
        for n_packs in range(100):
            pack = comparing.next_pack()
            if pack is None:
                break
            progress, results = followed.look()
            assert progress == said[-1]
            assert (progress.n_done, progress.n_all) == (6 * n_packs, N_RUNS)
            # Nothing is compared on the texts that rates are chosen by.
            assert bool(results) == (n_packs > 2)
            comparing.absorb(runs.run(pack))
        shown = runner.invoke(app, ["watch", str(tmp_path), "--once"])
    assert shown.exit_code == 0 and "the comparison is running" in shown.stderr
    assert f"comparison: {N_RUNS - 1} of {N_RUNS} runs done, 0 running, 1 failed" in shown.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = runner.invoke(app, ["watch", str(tmp_path)])
    assert done.exit_code == 0 and "the comparison has ended" in done.stderr
    spent = sum(run.gpu_seconds for run in (*store.observations(), *store.failures()))
    assert f"{spent:.0f} gpu_seconds spent, 0 left" in done.stderr
    # A line for every method at every point, with its runs and its recall.
    rows = [line.split() for line in done.stderr.splitlines() if line.startswith("  point")]
    n_runs = [row[row.index("runs") + 1] for row in rows]
    assert n_runs == ["2", "2", "2", "2", "2", "1"]
    assert all("token_recall" in row for row in rows)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_one_that_was_killed_is_said_to_be_continued(tmp_path: Path) -> None:
    spec, search = prepare_comparison(SMOKE)
    store = FileStore(tmp_path)
    claim_comparison(tmp_path, spec)
    comparing = ComparisonSearch(spec, search, store, MemoryTracker(), 2, lambda progress: None)
    comparing.absorb(SyntheticRunner(store).run(comparing.next_pack()))
    done = runner.invoke(app, ["watch", str(tmp_path)])
    assert done.exit_code == 0 and "the same pmlray compare continues it" in done.stderr


def test_runs_of_an_earlier_spec_are_none_of_this_one_s(tmp_path: Path) -> None:
    """Its store may hold other points and texts of the same comparison; they were paid for."""
    store = FileStore(tmp_path)
    spec, search = prepare_comparison(SMOKE)
    comparing = ComparisonSearch(spec, search, store, MemoryTracker(), 2, lambda progress: None)
    while (pack := comparing.next_pack()) is not None:
        comparing.absorb(SyntheticRunner(store).run(pack))
    one_point = "points=[{lora_rank: 4, seq_len: 40, train_steps: 60}]"
    fewer, _ = prepare_comparison(SMOKE, [one_point, "sequences=[0, 2]"])
    now, _ = FollowedComparison(fewer, store).look()
    # Of text 2 nothing is measured.
    assert (now.n_done, now.n_all) == (3 * 2 + 3, 3 * (2 + 2))
    assert now.gpu_seconds_spent == pytest.approx(N_RUNS * 60 * 40 * 1e-3)
    assert now.gpu_seconds_left == pytest.approx(3 * 60 * 40 * 1e-3)


def test_a_terminal_shows_the_methods_as_a_table() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100)
    rows = (
        {"point": "r4", "method": "SFT", "runs": "2"},
        {"point": "r4", "method": "OT", "runs": "1"},
    )
    standing = StudyStatus("comparison", 3, 0, 0, 9.0, 3.0, None, None, n_all=4, table=rows)
    with shown_live("pmlray watch", "looking ...", console) as show:
        show(standing)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written.getvalue())
    lines = [line.strip(" │\r") for line in text.splitlines()]
    assert "comparison: 3 of 4 runs done" in text
    shown = [line.split() for line in lines if line.startswith(("point", "r4"))]
    assert shown[-3:] == [["point", "method", "runs"], ["r4", "SFT", "2"], ["r4", "OT", "1"]]
