"""Cost of a pack while it trains: the device's paid time, shared out over its adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from pmlray.engine.model.batches import Row
from pmlray.engine.runtime.pack_state import PackState

# What `gpu_seconds` are, as a result's provenance says it.
CLOCKS = {
    "cpu": "CPU seconds of the training process",
    "cuda": "wall seconds of the device",
}


def paid_seconds(device: torch.device) -> float:
    """Return the seconds that this process is charged for, from any beginning.

    On a GPU wall time: no other process has the device meanwhile. On a CPU the CPU seconds of all
    of the process's threads, which neighbours on its cores hardly change; Ray's own threads use
    0.2 % of a core.
    """
    return time.process_time() if device.type == "cpu" else time.perf_counter()


class DeviceClock:
    """Shares what is paid for out over adapters by the work they put through the device: positions
    through the suffix, and `head_work` for each token that is scored.

    `lap` closes a stretch: it waits for the device, so it is called only where the loop must wait
    anyway. By adapter, `gpu_seconds` are what it cost by `paid_seconds`, and `wall_seconds` the
    time that it took; `training_seconds` is the wall time of optimiser steps. `done_work` is all
    that was put through so far. `payers` gives the members that an adapter's rows serve: each is
    charged an equal part.
    """

    def __init__(
        self,
        n_adapters: int,
        device: torch.device,
        payers: Callable[[int], Sequence[int]],
        head_work: float,
    ) -> None:
        self.gpu_seconds = [0.0] * n_adapters
        self.wall_seconds = [0.0] * n_adapters
        self.training_seconds = 0.0
        self.done_work = 0.0
        self._payers, self._head_work = payers, head_work
        self._work = [0.0] * n_adapters
        self._device = device
        self.restart()

    def work_of(self, row: Row) -> float:
        """Return the work of one pass of a row through the device."""
        return row.length + self._head_work * row.n_scored

    def add(self, rows: Sequence[Row]) -> None:
        """Note that these rows went through the device."""
        for row in rows:
            self.note(row.adapter, self.work_of(row))

    def note(self, adapter: int, work: float) -> None:
        """Note work of an adapter for those who pay for it."""
        payers = self._payers(adapter)
        for payer in payers:
            self._work[payer] += work / len(payers)

    def lap(self, training: bool) -> None:
        """Share out what passed since the last lap over the work noted since."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        wall, paid = time.perf_counter(), paid_seconds(self._device)
        wall_passed, paid_passed = wall - self._wall, paid - self._paid
        self._wall, self._paid = wall, paid
        if training:
            self.training_seconds += wall_passed
        total = sum(self._work)
        for n, work in enumerate(self._work):
            if total:
                self.gpu_seconds[n] += paid_passed * work / total
                self.wall_seconds[n] += wall_passed * work / total
        self.done_work += total
        self._work = [0.0] * len(self._work)

    def get_state(self) -> PackState:
        """Costs so far, as `set_state` continues from; call `lap` first, which shares them out."""
        return PackState(
            facts={
                "gpu_seconds": self.gpu_seconds,
                "wall_seconds": self.wall_seconds,
                "training_seconds": self.training_seconds,
                "done_work": self.done_work,
            }
        )

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        facts = state.facts
        self.gpu_seconds = list(facts["gpu_seconds"])
        self.wall_seconds = list(facts["wall_seconds"])
        self.training_seconds, self.done_work = facts["training_seconds"], facts["done_work"]

    def restart(self) -> None:
        """Start a stretch now: what came since the last lap counts for nobody."""
        self._wall, self._paid = time.perf_counter(), paid_seconds(self._device)
