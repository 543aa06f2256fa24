"""What packs may spend, what a few steps tell, and which budget is said to be too small."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import DesignError
from pmlray.live_packs import Calibration, put_calibration
from pmlray.ports import PackRunner
from pmlray.study.budget.accounts import Accounts
from pmlray.study.budget.allowance import least_budget, spent_seconds
from pmlray.study.budget.run_statistics import Measured
from pmlray.study.findings.result import assemble
from pmlray.types import FailedRun, Pack, PackResult, PackTimes
from tests.fakes import SyntheticRunner, observe
from tests.searches import COST, run_to_end, start, unlimited

SECONDS_PER_TOKEN = 1e-3


def calibration(search: PreparedSearch, folder: Path, seconds_per_token: float) -> Calibration:
    """What three steps of the initial design would tell at this rate."""
    law_search, _ = start(search, folder)
    draft = law_search.to_calibrate()
    assert draft is not None and draft.calibrates
    tokens = 3 * sum(COST.tokens_per_step(run.point) for run in draft.runs)
    paid = seconds_per_token * tokens
    return Calibration(tuple((run.point, 3) for run in draft.runs), paid, 2 * paid)


class Overspending:
    """A runner whose packs cost more than was predicted, and leave out what they have no room for,
    as a pack's watch does: the dearest runs first."""

    def __init__(self, store: FileStore, seconds_per_token: float) -> None:
        self._store, self._seconds = store, seconds_per_token
        self.limits: list[float] = []

    def run(self, pack: Pack) -> PackResult:
        assert pack.gpu_seconds is not None
        self.limits.append(pack.gpu_seconds)
        found = [observe(r, pack.round, i, 0.02, self._seconds) for i, r in enumerate(pack.runs)]
        kept = sorted(found, key=lambda o: o.gpu_seconds)
        gone = []
        while sum(o.gpu_seconds for o in kept) > pack.gpu_seconds:
            gone.append(kept.pop())
        failed = [
            FailedRun(o.run_key, o.point, pack.round, o.place, "left out", 0.01 * o.gpu_seconds,
                      left_out=True, phase=o.phase)
            for o in gone
        ]  # fmt: skip
        for o in kept:
            self._store.put(o)
        for f in failed:
            self._store.put_failure(f)
        times = PackTimes(pack.pack_id, pack.round, 0.8, 1.0)
        return PackResult(pack, tuple(kept), tuple(failed), times)


@pytest.mark.parametrize("price", [1.0, 3.0, 8.0])
def test_neither_phase_overspends_whatever_its_runs_cost(
    make_search: Callable[..., PreparedSearch], tmp_path: Path, price: float
) -> None:
    search = make_search("law={forms: [ceiling], n_bootstrap: 20}", "design.pack_size=null")
    law_search, store = start(search, tmp_path)
    runner: PackRunner = Overspending(store, price * SECONDS_PER_TOKEN)
    run_to_end(law_search, runner)  # type: ignore[arg-type]
    spent = spent_seconds(store.observations(), store.failures(), None)
    budget = search.spec.budget
    assert 0 < spent["law"] <= 1.1 * budget.law_seconds
    assert spent["memft"] <= 1.1 * budget.memft_seconds
    result = assemble(search.spec, store.observations(), store.failures(), store.times())
    said = result.to_json()
    assert said["n_failed"] == 0
    assert said["n_left_out_of_packs"] == len(store.failures())
    assert said["gpu_seconds"]["spent"] == pytest.approx(sum(spent.values()))
    # What was left out is no run that failed, nor is a pack of nothing else one.
    assert law_search.progress().n_failed == 0
    first = [o for o in store.observations() if o.round == 0]
    assert sum(o.gpu_seconds for o in first) <= 0.45 * budget.law_seconds


def test_the_start_is_sized_by_what_a_few_steps_cost(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    slow = calibration(search, tmp_path / "guess", 8 * SECONDS_PER_TOKEN)
    guessed, _ = start(search, tmp_path / "blind")
    told, _ = start(search, tmp_path / "told")
    told.calibrated(slow)
    assert told.to_calibrate() is None

    def tokens(pack: Pack | None) -> float:
        assert pack is not None
        return sum(COST.tokens_per_step(run.point) for run in pack.runs)

    blind, sized = tokens(guessed.next_pack()), tokens(told.next_pack())
    assert sized < blind
    # At the rate that was told it stays within its share.
    steps = search.spec.space.train_steps[0]
    assert 8 * SECONDS_PER_TOKEN * steps * sized <= 0.4 * search.spec.budget.law_seconds
    # The steps themselves are paid for.
    assert told.progress().gpu_seconds_spent == slow.spent_gpu_seconds


def test_a_search_that_starts_again_plans_by_what_its_first_steps_told(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    slow = calibration(search, tmp_path / "guess", 4 * SECONDS_PER_TOKEN)
    first, store = start(search, tmp_path / "store")
    first.calibrated(slow)
    put_calibration(store.folder, slow)
    pack = first.next_pack()
    assert pack is not None
    first.absorb(SyntheticRunner(store, seconds_per_token=4 * SECONDS_PER_TOKEN).run(pack))
    expected = first.next_pack()
    again, store = start(search, tmp_path / "store")
    kept = store.calibration()
    assert kept == slow
    again.calibrated(kept)
    # A pack that was handed out and never came back goes on as it was.
    assert unlimited(again.next_pack()) == unlimited(expected)
    result = assemble(
        search.spec, store.observations(), store.failures(), store.times(), store.calibration()
    )
    law = sum(o.gpu_seconds for o in store.observations())
    assert result.gpu_seconds.law == pytest.approx(law + slow.spent_gpu_seconds)


def test_a_budget_too_small_for_a_law_is_told_with_one_that_is_not(
    make_search: Callable[..., PreparedSearch],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    search = make_search()
    least = least_budget(search.spec, COST)
    found = calibration(search, tmp_path / "guess", SECONDS_PER_TOKEN)

    def warnings(budget: float) -> list[str]:
        caplog.clear()
        small = make_search(f"budget.gpu_seconds={budget}")
        law_search, _ = start(small, tmp_path / f"{budget}")
        with caplog.at_level(logging.WARNING, "pmlray"):
            law_search.calibrated(found)
        return [r.message for r in caplog.records if "too small" in r.message]

    assert not warnings(1.2 * least)
    (said,) = warnings(0.8 * least)
    assert "4 adaptive rounds and 12 observations" in said and f"{least:.0f} would do" in said


def test_the_budget_that_would_do_does(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search("design.pack_size=null", "law={forms: [ceiling], n_bootstrap: 20}")
    least = 1.01 * least_budget(search.spec, COST)
    enough = make_search(
        f"budget.gpu_seconds={least}", "design.pack_size=null", "memft=null",
        "law={forms: [ceiling], n_bootstrap: 20}",
    )  # fmt: skip
    law_search, store = start(enough, tmp_path)
    run_to_end(law_search, SyntheticRunner(store))
    rounds = {o.round for o in store.observations()}
    assert len(store.observations()) >= 12 and len(rounds) >= 1 + 4


def test_a_budget_smaller_than_one_run_is_an_error_that_says_what_would_do(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    found = calibration(search, tmp_path / "guess", SECONDS_PER_TOKEN)
    # The guess was that it is enough; here steps take a thousand times as long.
    slow = Calibration(found.steps, 1000 * found.gpu_seconds, 0.0)
    accounts = Accounts(search, COST, Measured(COST, (), ()), ())
    with pytest.raises(DesignError, match="is less than the cheapest run takes here, about 1600"):
        accounts.calibrated(slow)


def test_packs_of_several_devices_stay_within_the_budget_together(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """Whatever each of them takes: all take all that they may."""
    search = make_search(
        "law={forms: [ceiling], n_bootstrap: 20}", "design={n_initial: 12}", "memft=null",
        "sequences=[0, 1, 2, 3]", "budget.gpu_seconds=100",
    )  # fmt: skip
    law_search, store = start(search, tmp_path)
    law_search.spread_over(4)
    runner = Overspending(store, 3 * SECONDS_PER_TOKEN)
    out: list[Pack] = []
    while True:
        while len(out) < 4 and (pack := law_search.next_pack()) is not None:
            out.append(pack)
            held = sum(p.gpu_seconds or 0.0 for p in out)
            spent = spent_seconds(store.observations(), store.failures(), None)["law"]
            assert held + spent <= 1.06 * search.spec.budget.law_seconds
        if not out:
            break
        law_search.absorb(runner.run(out.pop(0)))
    assert spent_seconds(store.observations(), store.failures(), None)["law"] <= 110


def test_an_adaptive_pack_is_not_held_to_what_the_start_has_left(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """Its start was so dear that some of it was left out, so that fewer runs than were wanted are
    measured; what comes next has the rest of the budget."""
    search = make_search("design.pack_size=null", "memft=null")
    law_search, store = start(search, tmp_path)
    runner = Overspending(store, 12 * SECONDS_PER_TOKEN)
    first = law_search.next_pack()
    assert first is not None
    law_search.absorb(runner.run(first))
    n_first = len(store.observations())
    assert 0 < n_first < search.spec.design.n_initial
    n_packs = 0
    while (pack := law_search.next_pack()) is not None:
        before = len(store.observations())
        law_search.absorb(runner.run(pack))
        assert len(store.observations()) > before, "a pack was left out as a whole"
        n_packs += 1
    assert n_packs > 0
    spent = spent_seconds(store.observations(), store.failures(), None)["law"]
    assert 0.6 * 120 < spent <= 1.1 * 120


def test_what_failed_before_a_restart_is_paid_for_once(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search("design.pack_size=null", "memft=null")
    law_search, store = start(search, tmp_path)
    pack = law_search.next_pack()
    assert pack is not None
    gone = FailedRun(
        pack.runs[0].run_key, pack.runs[0].point, pack.round, 0, "left out", 7.0, left_out=True
    )
    store.put_failure(gone)
    again, store = start(search, tmp_path)
    resumed = again.next_pack()
    assert resumed is not None and resumed.runs == pack.runs
    # What it has spent before it was cut off it may spend besides.
    assert resumed.gpu_seconds == pytest.approx(1.05 * 120)
    found = [observe(r, 0, i, 0.02, 1e-3) for i, r in enumerate(pack.runs)][1:]
    for o in found:
        store.put(o)
    times = PackTimes(pack.pack_id, 0, 1.0, 1.0)
    again.absorb(PackResult(resumed, tuple(found), (gone,), times))
    now = again.progress()
    assert now.gpu_seconds_spent == pytest.approx(7.0 + sum(o.gpu_seconds for o in found))
    # A worker that was lost after it left a run out may have left it to the next, which measures.
    store.put(observe(pack.runs[0], 0, 0, 0.02, 1e-3))
    spent = spent_seconds(store.observations(), store.failures(), None)["law"]
    assert spent == pytest.approx(sum(o.gpu_seconds for o in store.observations()))
