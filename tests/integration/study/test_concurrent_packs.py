"""Several packs at once: nothing runs twice, the budget holds, and the search ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pmlray.config.prepared_search import PreparedSearch
from pmlray.study.search.law_search import LawSearch
from pmlray.types import Pack
from tests.fakes import SyntheticRunner
from tests.searches import start

QUICK = ("law.n_bootstrap=20", "law.forms=[ceiling]")


def run_at_once(
    law_search: LawSearch, runner: SyntheticRunner, width: int, rng: np.random.Generator
) -> list[list[Pack]]:
    """Keep up to `width` packs out, which come back in any order; returns what was out at each
    choice, the new pack last."""
    out: list[Pack] = []
    history = []
    while True:
        while len(out) < width and (pack := law_search.next_pack()) is not None:
            out.append(pack)
            history.append(list(out))
        if not out:
            return history
        law_search.absorb(runner.run(out.pop(rng.integers(len(out)))))


def test_packs_that_train_at_once(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(*QUICK, "sequences=[0, 1, 2, 3]", "budget.gpu_seconds=120")
    law_search, store = start(search, tmp_path)
    runner = SyntheticRunner(store, fails=lambda run: run.run_key.startswith("0"))
    history = run_at_once(law_search, runner, 3, np.random.default_rng(0))
    assert law_search.next_pack() is None
    assert max(map(len, history)) == 3
    planned = [run.run_key for *_, new in history for run in new.runs]
    assert len(planned) == len(set(planned))
    # A pack of the law may follow the initial design only once that was measured.
    assert all(len(at_once) == 1 or at_once[0].round > 0 for at_once in history)
    # The law no longer changes once MemFT's points are chosen from it.
    for *others, new in history:
        if new.runs[0].phase == "memft":
            assert all(pack.runs[0].phase == "memft" for pack in others)
    spent = {"law": 0.0, "memft": 0.0}
    for observation in store.observations():
        spent[observation.phase] += observation.gpu_seconds
    assert 0 < spent["law"] <= search.spec.budget.law_seconds
    assert 0 < spent["memft"] <= search.spec.budget.memft_seconds


MANY = (
    "law={forms: [ceiling], n_bootstrap: 20}", "memft=null", "design={n_initial: 12}",
    "sequences=[0, 1, 2, 3, 4, 5, 6, 7]", "budget.gpu_seconds=600",
)  # fmt: skip


def test_no_device_waits_for_the_longest_run_of_the_start(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(*MANY)
    law_search, store = start(search, tmp_path)
    law_search.spread_over(12)
    first = [law_search.next_pack() for _ in range(12)]
    assert law_search.next_pack() is None
    runner, n_back = SyntheticRunner(store), 0
    following = None
    while following is None:
        pack = first.pop(0)
        assert pack is not None
        law_search.absorb(runner.run(pack))
        n_back += len(pack.runs)
        following = law_search.next_pack()
    # There was a law of half the start, and of no less, that could choose.
    assert following is not None and 6 <= n_back < 12
    assert law_search.law is not None
    assert all(run.why != "initial design" for run in following.runs)


def test_without_a_pack_size_packs_grow_with_what_starting_one_costs(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """A pack that starts in no time has four runs; one that starts in a minute has more, though no
    more than are known, nor so many that a small budget would leave fewer than four rounds."""

    def sizes(folder: Path, start_seconds: float, budget: int = 400) -> list[int]:
        cheap = "design={n_initial: 6, acquisition: cheapest_first}"
        settings = (*QUICK, cheap, "sequences=[0, 1, 2, 3]", "memft=null")
        law_search, store = start(make_search(*settings, f"budget.gpu_seconds={budget}"), folder)
        runner, found, done = SyntheticRunner(store), [], 0
        while (pack := law_search.next_pack()) is not None:
            result = runner.run(pack)
            trained = sum(o.gpu_seconds for o in result.observations)
            times = replace(
                result.times, training_seconds=trained, wall_seconds=trained + start_seconds
            )
            law_search.absorb(replace(result, times=times))
            assert len(pack.runs) <= max(6, done)
            done += len(pack.runs)
            found.append(len(pack.runs))
        return found

    quick, slow = sizes(tmp_path / "quick", 0.0), sizes(tmp_path / "slow", 60.0)
    assert set(quick[1:-1]) == {4} and max(slow) > 4 and len(slow) < len(quick)
    assert len(sizes(tmp_path / "small", 60.0, budget=120)) >= 5
