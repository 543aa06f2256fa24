"""A whole search on a known law: it finds the law, keeps its budget, and resumes after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import RunError
from pmlray.live_packs import LivePack
from pmlray.study.findings.fitted_runs import fit_observations
from pmlray.study.findings.result import assemble
from pmlray.study.search.live import with_live
from pmlray.types import Observation, PlannedRun
from tests.fakes import TRUE_LAW, MemoryTracker, SyntheticRunner
from tests.searches import CHEAP, run_to_end, start, unlimited


def test_recovers_the_law_within_its_interval_and_budget(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    tracker = MemoryTracker()
    law_search, store = start(search, tmp_path / "store", tracker)
    run_to_end(law_search, SyntheticRunner(store))
    result = assemble(search.spec, store.observations(), store.failures(), store.times())
    assert result.law is not None
    seconds = result.gpu_seconds
    assert 0.5 * search.spec.budget.law_seconds < seconds.law <= search.spec.budget.law_seconds
    assert seconds.memft <= search.spec.budget.memft_seconds
    (target,) = result.law.targets
    truth = float(
        TRUE_LAW.predict(
            target.point.lora_rank, target.point.seq_len, target.point.train_steps, 12.01
        )
    )
    assert target.delta_loss == pytest.approx(truth, rel=0.02)
    assert len({o.run_key for o in result.observations}) == len(result.observations)
    assert sorted(tracker.observed) == sorted(o.run_key for o in result.observations)
    assert len({p.method for p in result.pairs}) == 2
    assert all(pair.sft.point == pair.memft.point for pair in result.pairs)


def test_memft_points_stay_where_the_law_put_them(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(
        f"sequences={list(range(12))}",
        "memft={n_points: 1, n_pairs: 12}",
        *CHEAP,
        "budget={gpu_seconds: 40, memft_gpu_seconds: 100000}",
    )
    law_search, store = start(search, tmp_path)
    runner = SyntheticRunner(store)
    points = set()
    while (pack := law_search.next_pack()) is not None:
        result = runner.run(pack)
        if pack.runs[0].phase == "memft":
            points |= {run.point for run in pack.runs}
            # Whatever these runs measure, they are no reason to plan others.
            drifted = [replace(o, base_loss=o.base_loss + 5) for o in result.observations]
            result = replace(result, observations=tuple(drifted))
        law_search.absorb(result)
    assert len(points) == 1


def test_a_kill_at_any_pack_loses_and_repeats_nothing(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(*CHEAP)
    law_search, store = start(search, tmp_path / "whole")
    runner = SyntheticRunner(store)
    run_to_end(law_search, runner)
    undisturbed = {o.run_key: o.to_json() for o in store.observations()}

    folder = tmp_path / "killed"
    ran: list[str] = []
    for _ in range(100):
        law_search, store = start(search, folder)
        runner = SyntheticRunner(store)
        over = law_search.is_over()
        pack = law_search.next_pack()
        assert over == (pack is None)
        if pack is None:
            break
        # The driver dies after its pack was stored and before it could absorb it.
        runner.run(pack)
        ran += runner.ran
    assert len(ran) == len(set(ran))
    assert {o.run_key: o.to_json() for o in store.observations()} == undisturbed


def test_it_is_over_when_memft_leaves_nothing_to_do(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    budget = "budget={gpu_seconds: 15, memft_gpu_seconds: 100000}"
    search = make_search(
        f"sequences={list(range(12))}", "memft={n_points: 1, n_pairs: 8}", *CHEAP, budget
    )
    law_search, store = start(search, tmp_path)
    runner = SyntheticRunner(store)
    over = [start(search, tmp_path)[0].is_over()]
    while (pack := law_search.next_pack()) is not None:
        if pack.runs[0].phase == "law":
            law_search.absorb(runner.run(pack))
            continue
        # Cut off with one of its runs measured.
        runner.run(replace(pack, runs=pack.runs[:1]))
        over.append(start(search, tmp_path)[0].is_over())
        law_search.absorb(runner.run(pack))
        over.append(start(search, tmp_path)[0].is_over())
    assert len(over) > 3
    assert over == [False] * (len(over) - 1) + [True]


def test_failed_runs_cost_but_are_not_tried_again(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(*CHEAP)
    law_search, store = start(search, tmp_path)
    broken: Callable[[PlannedRun], bool] = lambda run: run.point.lora_rank == 16  # noqa: E731
    runner = SyntheticRunner(store, fails=broken)
    run_to_end(law_search, runner)
    assert store.failures() and len(runner.ran) == len(set(runner.ran))
    assert {f.point.lora_rank for f in store.failures()} == {16}


def test_packs_that_keep_failing_end_the_search(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    law_search, store = start(make_search(), tmp_path)
    with pytest.raises(RunError, match="2 packs failed"):
        run_to_end(law_search, SyntheticRunner(store, fails=lambda run: True))


def test_stops_at_the_target_interval(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    # A run's noise is drawn by its key, which holds the rate: each rate is a draw of a search.
    for rate in ("0.01", "0.02", "0.04"):
        own = ("memft=null", f"recipe.learning_rate={rate}")
        search = make_search("stop.relative_interval=0.5", *own)
        stopped, on = (
            _law_runs(searched, tmp_path / rate / name)
            for name, searched in (("stopped", search), ("on", make_search(*own)))
        )
        last = max(o.round for o in stopped)
        known = [_known_interval(search, stopped, round_) for round_ in range(last + 1)]
        assert all(interval is None or interval > 0.5 for interval in known[:-1])
        assert known[-1] is not None and known[-1] <= 0.5
        # Without the rule it would have gone on, within its budget.
        assert max(o.round for o in on) > last and len(on) > len(stopped)
        if rate == "0.01":
            spent = sum(o.gpu_seconds for o in stopped)
            assert spent < 0.8 * search.spec.budget.law_seconds


def _law_runs(search: PreparedSearch, folder: Path) -> list[Observation]:
    law_search, store = start(search, folder)
    run_to_end(law_search, SyntheticRunner(store))
    return [o for o in store.observations() if o.phase == "law"]


def _known_interval(
    search: PreparedSearch, law: Sequence[Observation], round_: int
) -> float | None:
    fitted = fit_observations(search.spec, [o for o in law if o.round <= round_])
    return None if fitted is None else fitted.known_interval


def test_a_pack_that_was_cut_off_goes_on_as_it_was(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search("memft=null", "law.n_bootstrap=20")
    law_search, store = start(search, tmp_path / "whole")
    packs = [law_search.next_pack()]
    law_search.absorb(SyntheticRunner(store).run(packs[0]))
    packs.append(law_search.next_pack())
    law_search, store = start(search, tmp_path / "cut")
    cut_off = law_search.next_pack()
    assert cut_off is not None and unlimited(cut_off) == unlimited(packs[0])
    # Killed with three of its runs measured.
    SyntheticRunner(store).run(replace(cut_off, runs=cut_off.runs[:3]))
    before = store.observations()
    again, store = start(search, tmp_path / "cut")
    assert store.unfinished() == (unlimited(packs[0]),)
    assert unlimited(again.next_pack()) == unlimited(packs[0]) and again.next_pack() is None
    # Of what the pack tells, three runs are known.
    now, spent = again.progress(), sum(o.gpu_seconds for o in before)
    assert (now.n_done, now.n_pending) == (3, len(cut_off.runs) - 3)
    live = LivePack(cut_off.pack_id, "training", 0.0, len(cut_off.runs), 4, 9.0, 99.0, spent + 2.5)
    shown = with_live(now, [live])
    assert (shown.n_done, shown.n_pending) == (4, len(cut_off.runs) - 4)
    assert shown.gpu_seconds_spent == pytest.approx(spent + 2.5)
    assert shown.gpu_seconds_left == pytest.approx(now.gpu_seconds_left - 2.5)
    # While it loads, it has told of none yet.
    loading = LivePack(cut_off.pack_id, "loading the base", 0.0, len(cut_off.runs))
    assert with_live(now, [loading]).n_done == 3
    assert with_live(now, [loading]).gpu_seconds_spent == pytest.approx(spent)
    again.absorb(SyntheticRunner(store).run(packs[0]))
    assert store.unfinished() == ()
    assert all(o in store.observations() for o in before)
    assert unlimited(again.next_pack()) == unlimited(packs[1])
