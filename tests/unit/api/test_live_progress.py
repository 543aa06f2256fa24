"""What a search shows while it runs: plain lines and a panel of the same content."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pmlray.api.live_progress import Pace, shown_live
from pmlray.api.search_run import study_of
from pmlray.api.status import NOT_KNOWN, StudyStatus, describe_runs, status_of
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.live_packs import LivePack, LiveRun
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.live import with_live
from pmlray.study.search.plan import first_cost
from pmlray.study.search.progress import Progress, progress_metrics
from pmlray.types import DesignPoint, PlannedRun
from tests.fakes import MemoryTracker, SyntheticRunner

AT = StudyStatus(
    "law", 6, 2, 0, 100.0, 300.0, "power law: C 3", 0.5, ("rank 1 x 16 tokens: random",)
)


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_eta_follows_the_pace_since_it_was_looked_at() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert "ETA" not in pace.lines(AT)[0]
    clock.now = 50.0
    # 100 gpu_seconds in 50 s, and 200 are left.
    line = pace.lines(replace(AT, spent=200.0, left=200.0))[0]
    assert line == (
        "law: 6 done, 2 running, 0 failed; 200 gpu_seconds spent, 200 left in this phase,"
        " ETA at most 1:40"
    )
    assert pace.lines(replace(AT, spent=101.0, left=300.0))[0].endswith("ETA at most 4:10:00")


def test_the_eta_is_that_of_the_runs_where_they_end_before_the_budget() -> None:
    clock = Clock()
    pace = Pace(clock)
    few = replace(AT, spent=200.0, left=3000.0, needed=40.0)
    pace.lines(AT)
    clock.now = 50.0
    assert pace.lines(few)[0].endswith(
        "200 gpu_seconds spent, 3000 left in this phase, whose open runs take about 40,"
        " ETA at most 0:20"
    )
    assert few.share_spent == pytest.approx(200 / 240)
    # What the budget ends first is its matter alone.
    many = pace.lines(replace(few, left=200.0, needed=3000.0))[0]
    assert many.endswith("200 left in this phase, ETA at most 1:40")


def test_the_interval_s_tightening_is_shown_and_an_unknown_one_is_said_to_be() -> None:
    pace = Pace(Clock())
    said = [pace.lines(replace(AT, known=known))[1] for known in (None, 0.5, 0.5, 0.125)]
    assert [line.removeprefix("power law: C 3; ") for line in said] == [
        NOT_KNOWN,
        "targets known to +-50 %",
        "targets known to +-50 %",
        "targets known to +-12 %, +-50 % before",
    ]


def test_runs_of_one_reason_are_one_line() -> None:
    def run(rank: int, why: str) -> PlannedRun:
        return PlannedRun(DesignPoint(rank, 16, 60), "sft", 0, 0, "law", str(rank), why=why)

    assert describe_runs([run(1, "initial design"), run(4, "initial design"), run(2, "other")]) == (
        "2 runs of rank 1 to 4 x 16 tokens: initial design",
        "rank 2 x 16 tokens, 60 steps: other",
    )
    many = describe_runs([run(n, f"reason {n}") for n in range(1, 8)])
    assert len(many) == 4 and many[-1] == "and 4 more"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_and_a_log_show_the_same(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    clock = Clock()
    with shown_live("pmlray", "waiting", console, clock) as show:
        show(AT)
        # In a log, how far runs are is news every quarter of a minute only.
        show(replace(AT, n_done=7, spent=120.0))
        clock.now = 15.0
        show(replace(AT, n_done=8))
    text = written.getvalue()
    assert "8 done" in text and "power law: C 3" in text and "rank 1 x 16 tokens: random" in text
    assert ("\x1b" in text) == terminal
    # The law stands on a line of its own.
    assert any(line.strip(" │").startswith("power law") for line in text.splitlines())
    if not terminal:
        assert "7 done" not in text
        # A log is not told again what has not changed.
        assert [line.strip().split(":")[0] for line in text.splitlines()] == [
            "law", "power law", "rank 1 x 16 tokens", "law",
        ]  # fmt: skip


def test_how_far_a_pack_is_stands_below_where_the_study_is() -> None:
    pack = LivePack(
        "pack-001-ab", "training", 0.0, 4, 1, 30.0, 120.0, 10.0, 6.0, 31.2, 65.0,
        (LiveRun("a", 10, 40, 2.0), LiveRun("b", 10, 40, 4.0), LiveRun("c", 0, 40, math.nan)),
    )  # fmt: skip
    at = Progress("law", 6, 4, 0, 100.0, 300.0, None)
    shown = status_of(with_live(at, [pack]))
    assert shown.live == (
        "pack-001-ab: 30 of 120 adapter-steps (25 %), 1 of 4 runs ended, mean loss 3,"
        " 10 gpu_seconds spent, about 31 left, ETA 1:05",
    )
    # A driver counts runs by the pack, whoever reads a store as they end.
    assert (shown.n_done, shown.n_running, shown.spent, shown.left) == (7, 3, 110.0, 290.0)
    read = with_live(at, [pack], by_pack=False)
    assert (read.n_done, read.gpu_seconds_spent, read.gpu_seconds_left) == (6, 106.0, 294.0)
    loading = replace(pack, stage="loading the base", train_steps=0.0)
    assert status_of(with_live(at, [loading])).live == ("pack-001-ab: loading the base",)
    waiting = status_of(replace(at, stage="starting Ray", stage_seconds=8.0))
    assert waiting.live == ("starting Ray (8 s)",)
    # Where no law is fitted none is missed.
    training = status_of(replace(at, n_all=4, what="training"))
    assert (training.phase, training.law) == ("training", None)


def followed_search(search: PreparedSearch, folder: Path, noise: float) -> list[Progress]:
    """Every progress that a search of a known law announces."""
    store, said = FileStore(folder), []
    cost = first_cost(search, gpu=False)
    running = LawSearch(
        search, store, study_of(search, store, cost), MemoryTracker(), cost, 2, said.append
    )
    runner = SyntheticRunner(store, noise=noise)
    while (pack := running.next_pack()) is not None:
        running.absorb(runner.run(pack))
    return said


def test_a_search_says_why_its_next_pack_was_chosen(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(
        "budget={gpu_seconds: 90, memft_gpu_seconds: 30}",
        "law.n_bootstrap=20",
        "design.validation_share=0.6",
    )
    said = followed_search(search, tmp_path / "store", noise=0.05)
    first, *later = [status_of(p) for p in said if p.running]
    assert [line.split(": ", 1)[1] for line in first.running] == ["initial design"]
    law = [line for s in later if s.phase == "law" for line in s.running]
    chosen = [line for line in law if "v_optimal: " in line]
    assert chosen and all("nats^2 of variance per gpu_second" in line for line in chosen)
    # The target is the grid's largest cell.
    assert any("sharpens rank 16 x 128 tokens +-" in line for line in chosen)
    assert any("checks the law" in line for line in law)
    memft = [line for s in later if s.phase == "memft" for line in s.running]
    assert memft and all("near ln 2" in line for line in memft)
    # What is kept says so too.
    plans = FileStore(tmp_path / "store").plans()
    assert {run.why for run in plans[0].runs} == {"initial design"}


def test_a_law_through_few_points_is_not_taken_for_known(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """Without noise the first six points are fitted exactly, and say nothing of how runs repeat."""
    search = make_search("stop.relative_interval=0.05", "law.n_bootstrap=20", "sequences=[0]",
                         "budget={gpu_seconds: 60, memft_gpu_seconds: 1}")  # fmt: skip
    said = [status_of(p) for p in followed_search(search, tmp_path / "store", noise=0.0)]
    after_first = next(s for s in said if s.n_done == 6)
    assert after_first.law is not None and "alpha" in after_first.law
    assert after_first.known is None and "[" not in after_first.law
    # The search went on.
    assert said[-1].n_done > 6


def test_what_is_left_is_at_least_what_the_packs_in_training_say() -> None:
    pack = LivePack("pack-000-ab", "training", 0.0, 4, 1, 30.0, 120.0, 10.0, 6.0, 30.0, 65.0)
    # A comparison of ten runs before any has ended, and a sizing's pack that was thought cheap.
    comparison = Progress("memft", 0, 4, 0, 0.0, 0.0, None, n_all=10)
    shown = status_of(with_live(comparison, [pack]))
    assert shown.left == pytest.approx(30.0 + 6 * 40.0 / 4) == shown.most_left
    cheap = Progress("law", 0, 4, 0, 0.0, 7.0, None, 7.0, n_all=4, what="training")
    shown = status_of(with_live(cheap, [pack]))
    assert (shown.left, shown.most_left) == (30.0, 30.0)
    dear = replace(cheap, gpu_seconds_left=500.0, gpu_seconds_open=500.0)
    assert status_of(with_live(dear, [pack])).most_left == 490.0
    unknown = replace(pack, gpu_seconds_left=None)
    assert status_of(with_live(dear, [unknown])).most_left == 490.0
    # A search ends with its budget, whatever its packs say.
    of_budget = replace(cheap, what="", n_all=None)
    assert status_of(with_live(of_budget, [pack])).left == 0.0


def test_no_number_is_told_before_something_has_told_what_is_left() -> None:
    """A guess by the base's size stood there, 3.4 times too low for 300 facts at all layers."""
    begun = Progress("law", 0, 4, 0, 0.0, math.inf, None, n_all=4, what="training")
    seconds = iter((0.0, 1.0, 2.0, 3.0))
    pace = Pace(clock=lambda: next(seconds))
    assert pace.lines(status_of(begun)) == [
        "training: 0 of 4 runs done, 4 running, 0 failed; 0 gpu_seconds spent"
    ]
    assert not any("left" in name for name in progress_metrics(begun))
    pack = LivePack("pack-000-ab", "training", 0.0, 4, 1, 30.0, 120.0, 10.0, 6.0, 30.0, 65.0)
    silent = with_live(begun, [replace(pack, gpu_seconds_left=None)])
    assert "left" not in pace.lines(status_of(silent))[0]
    told = with_live(begun, [pack])
    said = pace.lines(status_of(told))[0]
    assert "10 gpu_seconds spent, about 30 left in this phase, ETA at most 0:" in said
    assert progress_metrics(told)["progress/law_gpu_seconds_left"] == 30.0
