"""A pack's own watchman: every few seconds it tells where the pack stands, and what would overspend
is left out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from pmlray.engine.scheduling.outlook import Outlook, Pace, too_much
from pmlray.live_packs import LivePack, LiveRun
from pmlray.types import Pack

Tell = Callable[[LivePack], None]
# Each look waits for the device once and writes one small file.
SECONDS_BETWEEN_LOOKS = 2.0
# Of what a pack may spend, between two looks; and of its time, by looks.
LOOKS_SHARE, LOOKS_SHARE_OF_TIME = 0.02, 0.01


class Watched(Protocol):
    """A pack between two steps."""

    active: list[int]

    def outlook(self, step: int) -> Outlook:
        """Return its work, done and left; waits for the device."""
        ...

    def running(self, step: int) -> dict[int, tuple[int, float]]:
        """The steps that each member has had that trains, and its last loss, nats per token."""
        ...


def untold(_pack: LivePack) -> None:
    """Discard progress."""


class PackWatch:
    """Looks at a pack that trains.

    tell: where to say how it stands. devices: gpu_seconds that a second takes at most, by which a
    pack with little to spend is looked at more often.
    """

    def __init__(self, pack: Pack, tell: Tell = untold, devices: int = 1) -> None:
        self._pack, self._tell = pack, tell
        self._pace = Pace(time.perf_counter)
        limit = math.inf if pack.gpu_seconds is None else pack.gpu_seconds
        self._every = min(SECONDS_BETWEEN_LOOKS, LOOKS_SHARE * limit / devices)
        self._next = time.perf_counter() + self._every

    def stage(self, words: str) -> None:
        """Tell what the pack does before it trains."""
        self._tell(LivePack(self._pack.pack_id, words, time.time(), len(self._pack.runs)))

    def after(self, loop: Watched, step: int) -> tuple[int, ...]:
        """After a step of the pack: tell where it stands, if it is time to; the members that it
        has to leave out, for good."""
        if not loop.active or time.perf_counter() < self._next:
            return ()
        began = time.perf_counter()
        found = loop.outlook(step)
        pace = self._pace.look(found)
        gone = too_much(found, None if pace is None else pace[0], self._pack.gpu_seconds)
        self._tell(self._standing(loop, step, found, pace))
        now = time.perf_counter()
        # A slow disk is not to slow the pack.
        self._next = now + max(self._every, (now - began) / LOOKS_SHARE_OF_TIME)
        return gone

    def _standing(
        self, loop: Watched, step: int, found: Outlook, pace: tuple[float, float] | None
    ) -> LivePack:
        runs = self._pack.runs
        of_runs = tuple(
            LiveRun(runs[i].run_key, steps, steps + found.ahead[i], loss)
            for i, (steps, loss) in loop.running(step).items()
        )
        return LivePack(
            self._pack.pack_id,
            "training",
            time.time(),
            len(runs),
            len(runs) - len(found.ahead),
            found.steps,
            found.train_steps,
            found.gpu_seconds,
            found.open_gpu_seconds,
            None if pace is None else pace[0] * found.work_left,
            None if pace is None else pace[1] * found.work_left,
            of_runs,
        )
