"""A pack whose runs train one after another on several ranks leaves out what would overspend."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from pmlray.backends.deepspeed.sharded_watch import ShardedWatch
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.live_packs import LivePack
from pmlray.types import DesignPoint, Pack, PlannedRun

KEYS = ("a" * 16, "b" * 16, "c" * 16)
RUNS = tuple(PlannedRun(DesignPoint(1, 16, 100), "sft", 0, 0, "law", key) for key in KEYS)
# So many looks that each step has its own.
OFTEN = 10**12


class Rank:
    """One of two, whose word the other hears."""

    def __init__(self, rank: int, words: deque[bool]) -> None:
        self.rank, self.world, self._words = rank, 2, words

    def agree(self, found: bool) -> bool:
        if self.rank:
            return self._words.popleft()
        self._words.append(found)
        return found


class Run:
    """Each step costs a rank so many gpu_seconds."""

    def __init__(self, cost: float) -> None:
        self.clock = DeviceClock(1, torch.device("cpu"), lambda _: (0,), 0.0)
        self.curve, self.step, self._cost = [(0, 5.0)], 0, cost

    def take(self) -> Run:
        self.step += 1
        self.clock.gpu_seconds[0] += self._cost
        return self


def left_after(limit: float | None, spent: float, cost: float) -> int | None:
    """The step after which all ranks leave a run out, None where they train it to its end."""
    words, told = deque[bool](), list[LivePack]()
    pack = Pack(0, RUNS, gpu_seconds=limit)
    watches = [
        ShardedWatch(pack, Rank(rank, words), told.append, spent, OFTEN) for rank in range(2)
    ]
    runs = [Run(cost), Run(cost)]
    for watch in watches:
        watch.begin(1)
    for step in range(1, 100):
        found = {watch.after(run.take()) for watch, run in zip(watches, runs, strict=True)}
        assert len(found) == 1 and not words
        if found.pop():
            return step
    return None


@pytest.mark.parametrize(
    ("limit", "spent", "cost", "after"),
    [
        (None, 1000.0, 1.0, None),
        # 100 steps at 0.4 gpu_seconds on each of two ranks: 80, of which the limit wants to know.
        (100.0, 0.0, 0.4, None),
        (100.0, 20.0, 0.4, None),
        # Its pace is known after two stretches between looks.
        (100.0, 30.0, 0.4, 3),
        (100.0, 0.0, 0.6, 3),
        # Nothing need be known of a pack that has spent all.
        (100.0, 101.5, 0.4, 1),
    ],
)
def test_all_ranks_leave_out_a_run_with_which_the_pack_would_overspend(
    limit: float | None, spent: float, cost: float, after: int | None
) -> None:
    assert left_after(limit, spent, cost) == after


def test_no_run_is_judged_by_the_pace_of_another() -> None:
    pack, words = Pack(0, RUNS, gpu_seconds=100.0), deque[bool]()
    watch = ShardedWatch(pack, Rank(0, words), lambda _: None, 0.0, OFTEN)
    watch.begin(0)
    dear, cheap = Run(10.0), Run(0.1)
    assert [watch.after(dear.take()) for _ in range(3)] == [False, False, True]
    watch.spent += 60.0
    watch.begin(1)
    assert not any(watch.after(cheap.take()) for _ in range(99))
    assert not watch.is_spent
    watch.spent += 40.0
    assert watch.is_spent


def test_rank_0_alone_tells_how_the_pack_stands() -> None:
    told: list[list[LivePack]] = [[], []]
    for rank in (0, 1):
        pack = Pack(0, RUNS, gpu_seconds=1000.0)
        watch = ShardedWatch(pack, Rank(rank, deque([False] * 2)), told[rank].append, 7.0, OFTEN)
        watch.stage("loading the base")
        watch.begin(1)
        run = Run(0.5)
        for _ in range(2):
            watch.after(run.take())
    assert told[1] == []
    loading, _, training = told[0]
    assert (loading.stage, loading.train_steps) == ("loading the base", 0.0)
    assert (training.n_runs, training.n_ended) == (3, 1)
    assert (training.steps, training.train_steps) == (102.0, 300.0)
    # Two steps on two ranks, and what was spent before.
    assert (training.gpu_seconds, training.open_gpu_seconds) == (9.0, 2.0)
    assert training.gpu_seconds_left == 198.0
    assert [(live.run_key, live.steps, live.loss) for live in training.runs] == [(KEYS[1], 2, 5.0)]
