"""Monitor of a pack in training: reports progress, and finds members that would overspend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from pmlray.engine.scheduling.outlook import Outlook, Pace, too_much
from pmlray.live_packs import LivePack, LiveRun
from pmlray.types import Pack

Tell = Callable[[LivePack], None]
# Every look waits for the device once and writes one small file.
SECONDS_BETWEEN_LOOKS = 2.0
# Limits: cost between two looks as a share of the pack's gpu_seconds, and looks as a share of its
# time.
LOOKS_SHARE, LOOKS_SHARE_OF_TIME = 0.02, 0.01


class Watched(Protocol):
    """A pack in training, seen between two steps."""

    active: list[int]

    def outlook(self, step: int) -> Outlook:
        """Return the work done and left after `step` steps of the pack; waits for the device."""
        ...

    def running(self, step: int) -> dict[int, tuple[int, float]]:
        """Return the steps of each training member and its last loss, nats per token, by index."""
        ...


def untold(_pack: LivePack) -> None:
    """Discard progress."""


class PackWatch:
    """Periodic look at a pack in training.

    tell: called with the pack's progress. devices: largest gpu_seconds spent per wall second; a
    pack with a small limit is looked at more often.
    """

    def __init__(self, pack: Pack, tell: Tell = untold, devices: int = 1) -> None:
        self._pack, self._tell = pack, tell
        self._pace = Pace(time.perf_counter)
        limit = math.inf if pack.gpu_seconds is None else pack.gpu_seconds
        self._every = min(SECONDS_BETWEEN_LOOKS, LOOKS_SHARE * limit / devices)
        self._next = time.perf_counter() + self._every

    def stage(self, words: str) -> None:
        """Report a stage of the pack before training, described in words."""
        self._tell(LivePack(self._pack.pack_id, words, time.time(), len(self._pack.runs)))

    def after(self, loop: Watched, step: int) -> tuple[int, ...]:
        """Report the pack's progress after a step, if it is due.

        Returns the members to drop for good, by index; none where no report is due.
        """
        if not loop.active or time.perf_counter() < self._next:
            return ()
        began = time.perf_counter()
        found = loop.outlook(step)
        pace = self._pace.look(found)
        gone = too_much(found, None if pace is None else pace[0], self._pack.gpu_seconds)
        self._tell(self._standing(loop, step, found, pace))
        now = time.perf_counter()
        # Wait longer after a slow look, so that a slow disk does not slow the pack.
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
