"""Watch of a pack whose runs train one after another on ranks that share a base.

Unlike a packed loop's watch it judges only the run that trains, by that run's own pace: the cost of
a step on a sharded base does not follow from tokens or steps of another run, and a run that was
left out stays so.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.scheduling.outlook import Outlook, Pace, too_much
from pmlray.engine.scheduling.pack_watch import LOOKS_SHARE, SECONDS_BETWEEN_LOOKS, Tell
from pmlray.live_packs import LivePack, LiveRun
from pmlray.types import Pack


class Team(Protocol):
    """The ranks of a job."""

    rank: int
    world: int

    def agree(self, found: bool) -> bool:
        """Return rank 0's value on every rank; every rank must call it."""
        ...


class RunOfRanks(Protocol):
    """A run while it trains: `step` of its steps are done; `curve` holds (step, loss)."""

    clock: DeviceClock
    curve: list[tuple[int, float]]
    step: int


class ShardedWatch:
    """Every rank has one of a pack; rank 0 looks and tells, and the others hear what it has found.

    spent: gpu_seconds of the pack's runs that have ended. tell: where rank 0 says every few seconds
    how the pack stands. devices: gpu_seconds that a second takes at most.
    """

    def __init__(self, pack: Pack, ranks: Team, tell: Tell, spent: float, devices: int) -> None:
        self._pack, self._ranks, self._tell, self.spent = pack, ranks, tell, spent
        limit = math.inf if pack.gpu_seconds is None else pack.gpu_seconds
        # A pack with little to spend is looked at more often.
        self._every = min(SECONDS_BETWEEN_LOOKS, LOOKS_SHARE * limit / devices)
        self._next = time.perf_counter() + self._every
        self._place, self._pace = 0, Pace(time.perf_counter)

    @property
    def is_spent(self) -> bool:
        """True if nothing is left to begin another run with."""
        return self._pack.gpu_seconds is not None and self.spent >= self._pack.gpu_seconds

    def stage(self, words: str) -> None:
        """Tell what the pack does while it does not train."""
        if self._ranks.rank == 0:
            self._tell(LivePack(self._pack.pack_id, words, time.time(), len(self._pack.runs)))

    def begin(self, place: int) -> None:
        """The run at this place trains from here on."""
        self._place, self._pace = place, Pace(time.perf_counter)

    def after(self, run: RunOfRanks) -> bool:
        """After a step of the run: whether it is to be left out, for good, lest the pack spend too
        much. Every rank must ask."""
        found = self._ranks.rank == 0 and self._look(run)
        # Without a limit no rank waits for rank 0.
        return self._pack.gpu_seconds is not None and self._ranks.agree(found)

    def _look(self, run: RunOfRanks) -> bool:
        if time.perf_counter() < self._next:
            return False
        self._next = time.perf_counter() + self._every
        found = self._outlook(run)
        pace = self._pace.look(found)
        self._tell(self._standing(run, found))
        seconds = None if pace is None else pace[0]
        return bool(too_much(found, seconds, self._pack.gpu_seconds))

    def _outlook(self, run: RunOfRanks) -> Outlook:
        """Of the run that trains alone; a unit of its work is a step."""
        place, runs = self._place, self._pack.runs
        left = runs[place].point.train_steps - run.step
        before = sum(r.point.train_steps for r in runs[:place])
        # Its ranks work alike.
        own = run.clock.gpu_seconds[0] * self._ranks.world
        return Outlook(
            groups=((place,),),
            ahead={place: left},
            work={place: float(left)},
            steps=before + run.step,
            gpu_seconds=self.spent + own,
            open_gpu_seconds=own,
            done_work=float(run.step),
        )

    def _standing(self, run: RunOfRanks, found: Outlook) -> LivePack:
        runs = self._pack.runs
        wanted = sum(r.point.train_steps for r in runs)
        # Of the whole pack, as if all its runs' steps took as long.
        left = (wanted - found.steps) / run.step
        planned = runs[self._place]
        steps, loss = planned.point.train_steps, run.curve[-1][1]
        return LivePack(
            self._pack.pack_id,
            "training",
            time.time(),
            len(runs),
            self._place,
            found.steps,
            wanted,
            found.gpu_seconds,
            found.open_gpu_seconds,
            found.open_gpu_seconds * left,
            run.clock.wall_seconds[0] * left,
            (LiveRun(planned.run_key, run.step, steps, loss),),
        )
