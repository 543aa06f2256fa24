"""Agreement of the ranks of one job: rank 0 decides and broadcasts.

Messages go over gloo, whatever carries the tensors: they keep no GPU waiting or busy while there is
no pack.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist

from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.pack_state import PackState

KEEP, GO_ON, LEAVE = "keep", "go on", "leave"


class Ranks:
    """This process among the others of its job; needs torch's process group."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._words: Any = dist.new_group(backend="gloo")

    def say(self, word: Any) -> None:
        """Tell all other ranks, of which each must `hear`; rank 0 alone may."""
        dist.broadcast_object_list([word], src=0, group=self._words)

    def sum(self, amount: float) -> float:
        """The sum of what every rank has; every rank must ask."""
        found = torch.tensor(amount, dtype=torch.float64)
        dist.all_reduce(found, group=self._words)
        return float(found)

    def hear(self) -> Any:
        """Rank 0's next word."""
        said = [None]
        dist.broadcast_object_list(said, src=0, group=self._words)
        return said[0]

    def agree(self, found: bool) -> bool:
        """Return rank 0's value on every rank; every rank must call it."""
        if self.rank:
            return self.hear()
        self.say(found)
        return found


class SharedRun(Protocol):
    """A run that all ranks train together, between two steps."""

    clock: DeviceClock

    @property
    def is_done(self) -> bool:
        """True if it has had all its steps."""
        ...

    def get_state(self) -> PackState:
        """All that its later steps depend on; every rank must call it."""
        ...


class SharedCheckpoints(Protocol):
    """A pack's checkpoints, of which every rank has its side."""

    def resume(self) -> PackState | None:
        """The state of the run at which the pack was cut off, on every rank."""
        ...

    def after(self, run: SharedRun, step: int, anyone_finished: bool = False) -> None:
        """Keep the run after `step` steps of the pack, if it is time; AskedToLeave on every rank
        when rank 0 was asked to."""
        ...


class Leading:
    """Rank 0's side: it has the files."""

    def __init__(self, ranks: Ranks, checkpoints: Checkpoints) -> None:
        self._ranks, self._checkpoints = ranks, checkpoints

    def resume(self) -> PackState | None:
        found = _Found()
        self._checkpoints.resume(found)
        self._ranks.say(found.state)
        return found.state

    def after(self, run: SharedRun, step: int, anyone_finished: bool = False) -> None:
        try:
            self._checkpoints.after(_OfAllRanks(self._ranks, run), step, anyone_finished)
        except AskedToLeave:
            self._ranks.say(LEAVE)
            raise
        self._ranks.say(GO_ON)


class Following:
    """The side of all other ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def resume(self) -> PackState | None:
        return self._ranks.hear()

    def after(self, run: SharedRun, step: int, anyone_finished: bool = False) -> None:
        while (word := self._ranks.hear()) == KEEP:
            run.get_state()
        if word == LEAVE:
            raise AskedToLeave(f"rank 0 was asked to leave after step {step}")


class _Found:
    """The state that rank 0's files hold, if any."""

    state: PackState | None = None

    def set_state(self, state: PackState) -> None:
        self.state = state


class _OfAllRanks:
    """A run as rank 0's checkpoints see it: what they take out, all ranks must."""

    def __init__(self, ranks: Ranks, run: SharedRun) -> None:
        self.active: list[int] = [] if run.is_done else [0]
        self.clock = run.clock
        self._ranks, self._run = ranks, run

    def get_state(self) -> PackState:
        self._ranks.say(KEEP)
        return self._run.get_state()
