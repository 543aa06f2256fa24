"""Agreement of the ranks of one job: rank 0 decides and broadcasts.

Messages use gloo, whatever carries the tensors, so that no GPU is kept busy between packs.
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
    """Communication of this process with its job's other ranks; needs torch's process group."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._words: Any = dist.new_group(backend="gloo")

    def say(self, word: Any) -> None:
        """Send a value to all other ranks, each of which must call `hear`; for rank 0 only."""
        dist.broadcast_object_list([word], src=0, group=self._words)

    def sum(self, amount: float) -> float:
        """Return the sum of all ranks' amounts; every rank must call it."""
        found = torch.tensor(amount, dtype=torch.float64)
        dist.all_reduce(found, group=self._words)
        return float(found)

    def hear(self) -> Any:
        """Wait for the next value that rank 0 sends, and return it."""
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
    """Run that all ranks train together, between two steps."""

    clock: DeviceClock

    @property
    def is_done(self) -> bool:
        """True if all its steps are done."""
        ...

    def get_state(self) -> PackState:
        """Return the state that later steps depend on; every rank must call it."""
        ...


class SharedCheckpoints(Protocol):
    """Checkpoints of a pack as used on each rank."""

    def resume(self) -> PackState | None:
        """Return, on every rank, the state of the run at which the pack was interrupted."""
        ...

    def after(self, run: SharedRun, step: int, anyone_finished: bool = False) -> None:
        """Save the run after `step` steps of the pack, if a checkpoint is due; AskedToLeave on
        every rank when rank 0 was asked to leave."""
        ...


class Leading:
    """Checkpoints on rank 0, which has the files."""

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
    """Checkpoints on all other ranks, which follow rank 0."""

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
    """Receiver of the state in rank 0's files, if any."""

    state: PackState | None = None

    def set_state(self, state: PackState) -> None:
        self.state = state


class _OfAllRanks:
    """Run as seen by rank 0's checkpoints; taking its state involves all ranks."""

    def __init__(self, ranks: Ranks, run: SharedRun) -> None:
        self.active: list[int] = [] if run.is_done else [0]
        self.clock = run.clock
        self._ranks, self._run = ranks, run

    def get_state(self) -> PackState:
        self._ranks.say(KEEP)
        return self._run.get_state()
