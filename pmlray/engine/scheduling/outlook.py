"""Forecast of a pack's remaining work, and the members to drop where it would cost too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.schedules import Schedules, Trunks

# Predictions are noisy: an excess over the limit of up to this share is accepted.
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Outlook:
    """Work done and left of a pack between two steps.

    `groups`: members that have not ended, by index, in groups that are dropped together; `ahead`:
    the remaining steps of each, without those that its trunk takes for it, and `work` their work in
    the clock's unit. `steps`: adapter-steps so far; `open_gpu_seconds`: the part of the
    `gpu_seconds` so far charged to members that have not ended. `done_work`: work so far.
    """

    groups: tuple[tuple[int, ...], ...]
    ahead: Mapping[int, int]
    work: Mapping[int, float]
    steps: float
    gpu_seconds: float
    open_gpu_seconds: float
    done_work: float

    @property
    def work_left(self) -> float:
        """Remaining work of all members."""
        return sum(self.work.values())

    @property
    def train_steps(self) -> float:
        """Adapter-steps of the pack, taken and remaining."""
        return self.steps + sum(self.ahead.values())


def outlook(
    members: Sequence[Member],
    groups: Sequence[Sequence[int]],
    batch_size: int,
    own_steps: Mapping[int, int],
    left: Collection[int],
    budgets: Schedules,
    trunks: Trunks,
    clock: DeviceClock,
    charged_steps: float,
) -> Outlook:
    """Return the work that a pack has done and has left.

    groups: members that enter together. own_steps: steps of the members that train now; left: all
    that have not ended. charged_steps: adapter-steps taken so far.
    """
    ahead, work = dict[int, int](), dict[int, float]()
    for i in left:
        begins = trunks.branch_step(i) if trunks.waits(i) else own_steps.get(i, 0)
        ahead[i] = budgets.ahead(i, begins)
        rows = members[i].rows
        of_step = sum(map(clock.work_of, rows)) * min(1.0, batch_size / len(rows))
        # Plus the final scoring, a pass over each of its rows.
        work[i] = ahead[i] * of_step + sum(map(clock.work_of, rows))
    kept = (tuple(i for i in group if i in ahead) for group in groups)
    return Outlook(
        tuple(group for group in kept if group),
        ahead,
        work,
        charged_steps,
        sum(clock.gpu_seconds),
        sum(clock.gpu_seconds[i] for i in ahead),
        clock.done_work,
    )


def too_much(found: Outlook, seconds_of_work: float | None, limit: float | None) -> tuple[int, ...]:
    """Return the members to leave out so that a pack ends within its limit of gpu_seconds.

    Whole groups, those with most remaining work first; none without a limit, or where the remaining
    work costs less than the tolerance. seconds_of_work: gpu_seconds per unit of work; None: not
    known yet, so that all are left out once the limit is spent, and none before.
    """
    if limit is None:
        return ()
    most = (1 + TOLERANCE) * limit
    if seconds_of_work is None:
        spent = found.gpu_seconds > most
        return tuple(i for group in found.groups for i in group) if spent else ()
    work, left_out = found.work_left, list[int]()
    groups = sorted(found.groups, key=lambda group: -sum(found.work[i] for i in group))
    for group in groups:
        left = seconds_of_work * work
        if found.gpu_seconds + left <= most or left <= TOLERANCE * limit:
            break
        work -= sum(found.work[i] for i in group)
        left_out += group
    return tuple(left_out)


class Pace:
    """Estimate of the gpu_seconds and wall seconds that a unit of a pack's work takes.

    It is the cheaper of the last two intervals between looks; time before the first look is
    ignored: steps that compile, capture a graph or wait for a disk are not typical. clock: returns
    wall seconds from an arbitrary origin.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, float, float] | None = None
        self._stretches: deque[tuple[float, float]] = deque(maxlen=2)

    def look(self, found: Outlook) -> tuple[float, float] | None:
        """Update and return (gpu_seconds, wall seconds) per unit of work; None until known."""
        now = (found.done_work, found.gpu_seconds, self._clock())
        if self._last is None:
            self._last = now
        elif now[0] > self._last[0]:
            work, paid, wall = (b - a for a, b in zip(self._last, now, strict=True))
            self._stretches.append((paid / work, wall / work))
            self._last = now
        return min(self._stretches) if len(self._stretches) == 2 else None
