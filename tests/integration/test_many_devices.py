"""Many devices, simulated from the first pack to the last: none idles while there is work."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pmlray.config.prepared_search import PreparedSearch
from pmlray.study.search.law_search import LawSearch
from pmlray.types import Pack
from tests.fakes import SyntheticRunner
from tests.integration.study.test_concurrent_packs import MANY, QUICK, run_at_once
from tests.searches import COST, start
from tests.unit.conftest import make_search, search_file  # noqa: F401

pytestmark = pytest.mark.slow


def train_on(
    law_search: LawSearch, runner: SyntheticRunner, width: int
) -> list[tuple[Pack, float]]:
    """So many devices, each of which trains a pack for as long as its runs cost; every pack, and
    when it went out."""
    out: list[tuple[float, int, Pack]] = []
    history: list[tuple[Pack, float]] = []
    now = 0.0
    while True:
        while len(out) < width and (pack := law_search.next_pack()) is not None:
            seconds = sum(COST.predict(run.point) for run in pack.runs)
            heapq.heappush(out, (now + seconds, pack.round, pack))
            history.append((pack, now))
        if not out:
            return history
        now, _, pack = heapq.heappop(out)
        law_search.absorb(runner.run(pack))


def test_many_devices_are_busy_from_the_start_to_the_end(
    make_search: Callable[..., PreparedSearch],  # noqa: F811
    tmp_path: Path,
) -> None:
    width, budget = 12, 600.0
    law_search, store = start(make_search(*MANY), tmp_path)
    law_search.spread_over(width)
    history = train_on(law_search, SyntheticRunner(store), width)
    seconds = [sum(COST.predict(run.point) for run in pack.runs) for pack, _ in history]
    end = max(at + took for (_, at), took in zip(history, seconds, strict=True))
    assert sum(seconds) > 0.97 * budget
    # The rest is what no plan avoids: the last runs, up to 12.8 s long, do not end together.
    assert sum(seconds) / (width * end) > 0.85
    # A pack takes half of a device's share of what is left, where it has more than one run.
    left = budget
    for (pack, _), took in zip(history, seconds, strict=True):
        assert pack.round < width or len(pack.runs) == 1 or took <= left / (2 * width) + 1e-9
        left -= took


def test_the_start_is_dealt_out_over_the_devices(
    make_search: Callable[..., PreparedSearch],  # noqa: F811
    tmp_path: Path,
) -> None:
    search = make_search(*QUICK, "design={n_initial: 6}", "budget.gpu_seconds=40")
    law_search, store = start(search, tmp_path)
    law_search.spread_over(3)
    packs = [law_search.next_pack() for _ in range(3)]
    first = [pack for pack in packs if pack is not None]
    assert len(first) == 3 and law_search.next_pack() is None
    assert sum(len(pack.runs) for pack in first) == 6
    assert len({pack.round for pack in first}) == 3
    runner = SyntheticRunner(store)
    for pack in first:
        law_search.absorb(runner.run(pack))
    history = run_at_once(law_search, runner, 3, np.random.default_rng(0))
    keys = [o.run_key for o in store.observations()]
    assert len(keys) == len(set(keys)) == len(runner.ran)
    pairs = [new for *_, new in history if new.runs[0].phase == "memft"]
    assert len(pairs) > 1
