"""The adapters of a pack while they train: their rows, their order, their clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pmlray.engine.batches import Row
from pmlray.engine.prefix_cache import CachedRecord
from pmlray.memft import curriculum_order, prefix_ratio_curriculum
from pmlray.types import PlannedRun


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a pack: its run and its rows, one for each record to memorise."""

    run: PlannedRun
    rows: tuple[Row, ...]

    @property
    def train_steps(self) -> int:
        """Optimiser steps this adapter gets."""
        return self.run.point.train_steps

    def sees_everything(self, batch_size: int, temporal: bool) -> bool:
        """Whether every optimiser step sees all of its records."""
        return len(self.rows) <= batch_size and not (temporal and self.run.method == "memft_sw")

    def rows_at(self, step: int, batch_size: int, temporal: bool) -> tuple[Row, ...]:
        """The records of optimiser step `step`.

        Epochs are shuffled by the run's seed; `temporal` (MemFT's prefix curriculum, for tasks of
        many records) cycles through a growing prefix of one fixed random order instead.
        """
        n = len(self.rows)
        if temporal and self.run.method == "memft_sw":
            in_play = prefix_ratio_curriculum(n, step, self.train_steps)
            order = curriculum_order(n, self.run.seed)[:in_play]
            size = min(batch_size, in_play)
            return tuple(self.rows[order[(step * size + j) % in_play]] for j in range(size))
        if n <= batch_size:
            return self.rows
        chosen = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, index = divmod(position, n)
            order = np.random.default_rng([self.run.seed, epoch]).permutation(n)
            chosen.append(self.rows[order[index]])
        return tuple(chosen)


def make_members(
    runs: Sequence[PlannedRun], records: Sequence[Sequence[CachedRecord]]
) -> tuple[Member, ...]:
    """Members from runs and their cached records, with samples numbered over the whole pack."""
    members, sample = [], 0
    for adapter, (run, own) in enumerate(zip(runs, records, strict=True)):
        rows = tuple(Row(adapter, sample + i, record) for i, record in enumerate(own))
        sample += len(own)
        members.append(Member(run, rows))
    return tuple(members)


class DeviceClock:
    """Shares device time out over adapters by the tokens they put through it.

    `lap` closes a stretch: it waits for the device, so it is called only where the loop must wait
    anyway. `seconds` is wall time by adapter; `training_seconds` the wall time of optimiser steps.
    `payers` says whom an adapter's rows serve: each of them pays an equal part.
    """

    def __init__(
        self, n_adapters: int, device: torch.device, payers: Callable[[int], Sequence[int]]
    ) -> None:
        self.seconds = [0.0] * n_adapters
        self.training_seconds = 0.0
        self._payers = payers
        self._tokens = [0.0] * n_adapters
        self._device = device
        self._mark = time.perf_counter()

    def add(self, rows: Sequence[Row]) -> None:
        """Note that these rows went through the device."""
        for row in rows:
            payers = self._payers(row.adapter)
            for adapter in payers:
                self._tokens[adapter] += row.length / len(payers)

    def lap(self, training: bool) -> None:
        """Share out the time since the last lap over the tokens noted since."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        elapsed, self._mark = now - self._mark, now
        if training:
            self.training_seconds += elapsed
        total = sum(self._tokens)
        for n, tokens in enumerate(self._tokens):
            if total:
                self.seconds[n] += elapsed * tokens / total
        self._tokens = [0.0] * len(self._tokens)

    def restart(self) -> None:
        """Start a stretch now: what came since the last lap counts for nobody."""
        self._mark = time.perf_counter()
