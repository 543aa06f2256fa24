"""The adapters of a pack while they train: their rows and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.config.recipe import Recipe
from pmlray.engine.model.batches import Row
from pmlray.engine.model.prefix_cache import CachedRecord
from pmlray.memft import curriculum_order, paper_curriculum, prefix_ratio_curriculum
from pmlray.types import MemftRules, PlannedRun


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a pack: its run and its rows, one for each record to memorise."""

    run: PlannedRun
    rows: tuple[Row, ...]

    @property
    def train_steps(self) -> int:
        """Optimiser steps this adapter gets."""
        return self.run.point.train_steps

    def grows(self, rules: MemftRules) -> bool:
        """Whether the set of its records in play grows while it trains."""
        return rules.temporal and self.run.method == "memft_sw"

    def sees_everything(self, batch_size: int, rules: MemftRules) -> bool:
        """Whether every optimiser step scores all of its records."""
        left_out = self.grows(rules) or self.run.method == "memft_rd"
        return len(self.rows) <= batch_size and not left_out

    def rate_at(self, recipe: Recipe, progress: float) -> float:
        """Learning rate after so many of its optimiser steps."""
        own = self.run.learning_rate
        scale = 1.0 if own is None else own / recipe.learning_rate
        return scale * recipe.rate_at(progress, self.train_steps)

    def rows_at(self, step: int, batch_size: int, rules: MemftRules) -> tuple[Row, ...]:
        """The records of optimiser step `step`.

        Epochs are shuffled by the run's seed; where the set in play `grows`, steps cycle through a
        growing prefix of one fixed random order instead.
        """
        n = len(self.rows)
        if self.grows(rules):
            if rules.compat == "paper":
                size = min(batch_size, n)
                in_play = paper_curriculum(n, step, self.train_steps, size)
            else:
                in_play = prefix_ratio_curriculum(n, step, self.train_steps)
            order = curriculum_order(n, self.run.seed)[:in_play]
            size = min(batch_size, in_play)
            return tuple(self.rows[order[(step * size + j) % in_play]] for j in range(size))
        if n <= batch_size:
            return self.rows
        return tuple(self.rows[i] for i in batch_at(n, step, batch_size, self.run.seed))


def batch_at(n_records: int, step: int, batch_size: int, seed: int) -> tuple[int, ...]:
    """The records of an optimiser step, by index: epochs are shuffled by the run's seed."""
    if n_records <= batch_size:
        return tuple(range(n_records))
    chosen = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, index = divmod(position, n_records)
        order = np.random.default_rng([seed, epoch]).permutation(n_records)
        chosen.append(int(order[index]))
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
