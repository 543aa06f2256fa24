"""Cost of a pack in training: the device's charged time, distributed over its adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from pmlray.engine.model.batches import Row
from pmlray.engine.runtime.pack_state import PackState

# Meaning of `gpu_seconds` by device type, as given in a result's provenance.
CLOCKS = {
    "cpu": "CPU seconds of the training process",
    "cuda": "wall seconds of the device",
}


def paid_seconds(device: torch.device) -> float:
    """Return the seconds charged to this process, from an arbitrary origin.

    On a GPU wall time: no other process uses the device. On a CPU the CPU seconds of all of the
    process's threads, which other processes on its cores hardly change; Ray's own threads use 0.2 %
    of a core.
    """
    return time.process_time() if device.type == "cpu" else time.perf_counter()


class DeviceClock:
    """Timer that distributes charged time over adapters by their work on the device.

    Work counts positions through the suffix, and `head_work` for each scored token. `lap` ends an
    interval; it waits for the device, so it is called only where the loop must wait anyway. By
    adapter, `gpu_seconds`: cost by `paid_seconds`; `wall_seconds`: wall time. `training_seconds`:
    wall time of optimiser steps. `done_work`: all work so far. payers: returns the members that
    share an adapter's rows; each is charged an equal part.
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
        """Add the work of a pass of these rows through the device."""
        for row in rows:
            self.note(row.adapter, self.work_of(row))

    def note(self, adapter: int, work: float) -> None:
        """Add an adapter's work, in equal parts, to the members that it is charged to."""
        payers = self._payers(adapter)
        for payer in payers:
            self._work[payer] += work / len(payers)

    def lap(self, training: bool) -> None:
        """Distribute the time since the last lap over the work added since then.

        training: True where that time was spent in optimiser steps.
        """
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
        """Return the costs so far, which `set_state` restores; call `lap` first to include all."""
        return PackState(
            facts={
                "gpu_seconds": self.gpu_seconds,
                "wall_seconds": self.wall_seconds,
                "training_seconds": self.training_seconds,
                "done_work": self.done_work,
            }
        )

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        facts = state.facts
        self.gpu_seconds = list(facts["gpu_seconds"])
        self.wall_seconds = list(facts["wall_seconds"])
        self.training_seconds, self.done_work = facts["training_seconds"], facts["done_work"]

    def restart(self) -> None:
        """Restart the timer; time since the last lap is charged to no run."""
        self._wall, self._paid = time.perf_counter(), paid_seconds(self._device)
