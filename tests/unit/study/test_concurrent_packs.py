"""Several packs at once: nothing runs twice, the budget holds, and the search ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pmlray.config.prepared import PreparedSearch
from pmlray.study.law_search import LawSearch
from pmlray.types import Pack
from tests.fakes import SyntheticRunner
from tests.unit.study.test_law_search import start


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
    search = make_search("sequences=[0, 1, 2, 3]", "budget.gpu_seconds=40", "law.n_bootstrap=20")
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
