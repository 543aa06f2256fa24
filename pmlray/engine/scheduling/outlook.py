"""Steps of a pack, done and left, and the members to drop where they would cost too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.schedules import Schedules, Trunks

# Predictions wobble: a pack that is to end this little above its limit is let be.
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Outlook:
    """A pack between two steps.

    `groups`: members that have not ended, by index, those together that leave together; `ahead`:
    the steps that each of them still takes by itself, and `work` what these count in the clock.
    `steps` are all adapter-steps so far, and `train_steps` with those ahead; `open_gpu_seconds` is
    what of the `gpu_seconds` so far was for members that have not ended.
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
        """Of all members."""
        return sum(self.work.values())

    @property
    def train_steps(self) -> float:
        """Adapter-steps of the pack, from its start to its end."""
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
    """Return the work that a pack has done and still has.

    groups: of members that enter together. own_steps: steps of the members that train now; left:
    all that have not ended. charged_steps: adapter-steps taken so far.
    """
    ahead, work = dict[int, int](), dict[int, float]()
    for i in left:
        begins = trunks.branch_step(i) if trunks.waits(i) else own_steps.get(i, 0)
        ahead[i] = budgets.ahead(i, begins)
        rows = members[i].rows
        of_step = sum(map(clock.work_of, rows)) * min(1.0, batch_size / len(rows))
        # Its final scores take each of its rows once more.
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
    """The members that a pack leaves out so that it ends within its limit of gpu_seconds: whole
    groups, those with most before them first; none without a limit, or where all that is left is
    less than is tolerated.

    seconds_of_work: gpu_seconds that a unit of work takes; None: not known yet, so that only a pack
    that has spent all leaves the rest undone.
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
    """gpu_seconds and wall seconds that a unit of a pack's work takes, by its latest looks.

    The cheaper of the last two stretches between looks counts, and nothing before the first look:
    a step that compiles, captures a graph or waits for a disk says nothing of the others. clock:
    wall seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, float, float] | None = None
        self._stretches: deque[tuple[float, float]] = deque(maxlen=2)

    def look(self, found: Outlook) -> tuple[float, float] | None:
        """The pace, (gpu_seconds, wall seconds) a unit of work; None while nothing tells it."""
        now = (found.done_work, found.gpu_seconds, self._clock())
        if self._last is None:
            self._last = now
        elif now[0] > self._last[0]:
            work, paid, wall = (b - a for a, b in zip(self._last, now, strict=True))
            self._stretches.append((paid / work, wall / work))
            self._last = now
        return min(self._stretches) if len(self._stretches) == 2 else None
