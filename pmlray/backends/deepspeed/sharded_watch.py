"""Watch of the cost of a pack whose runs train one after another on a sharded base.

Unlike a packed loop's watch it predicts only the run in training, from that run's own pace: on a
sharded base, the cost of a step does not follow from tokens or steps of another run. A run that was
left out stays left out.
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
    """Ranks of a job."""

    rank: int
    world: int

    def agree(self, found: bool) -> bool:
        """Return rank 0's value on every rank; every rank must call it."""
        ...


class RunOfRanks(Protocol):
    """Run in training: `step` of its steps are done; `curve` holds (step, loss)."""

    clock: DeviceClock
    curve: list[tuple[int, float]]
    step: int


class ShardedWatch:
    """Watch of a pack, one on every rank: rank 0 decides and reports, the others get its decisions.

    spent: gpu_seconds of the pack's runs that have ended. tell: receives the pack's progress from
    rank 0 every few seconds. devices: largest number of gpu_seconds per wall second.
    """

    def __init__(self, pack: Pack, ranks: Team, tell: Tell, spent: float, devices: int) -> None:
        self._pack, self._ranks, self._tell, self.spent = pack, ranks, tell, spent
        limit = math.inf if pack.gpu_seconds is None else pack.gpu_seconds
        # A small budget is checked more often.
        self._every = min(SECONDS_BETWEEN_LOOKS, LOOKS_SHARE * limit / devices)
        self._next = time.perf_counter() + self._every
        self._place, self._pace = 0, Pace(time.perf_counter)

    @property
    def is_spent(self) -> bool:
        """True if the pack's gpu_seconds are spent, so that no other run may begin."""
        return self._pack.gpu_seconds is not None and self.spent >= self._pack.gpu_seconds

    def stage(self, words: str) -> None:
        """Report the pack's activity while it does not train."""
        if self._ranks.rank == 0:
            self._tell(LivePack(self._pack.pack_id, words, time.time(), len(self._pack.runs)))

    def begin(self, place: int) -> None:
        """Begin to watch the run at this place."""
        self._place, self._pace = place, Pace(time.perf_counter)

    def after(self, run: RunOfRanks) -> bool:
        """Return whether to leave the run out, for good, so that the pack does not overspend.

        Called after each step of the run; every rank must call it.
        """
        found = self._ranks.rank == 0 and self._look(run)
        # Without a limit there is nothing to agree on, so no rank waits for rank 0.
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
        """Return the outlook of the run in training alone; a unit of its work is a step."""
        place, runs = self._place, self._pack.runs
        left = runs[place].point.train_steps - run.step
        before = sum(r.point.train_steps for r in runs[:place])
        # All ranks do the same work, so this rank's time stands for each.
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
        # The whole pack's steps to go per step of this run, as if all steps took equally long.
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
