"""Members of a pack, its adapters in training: rows of each step, and order of admission."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from pmlray.config.recipe import Recipe
from pmlray.engine.model.batches import Row
from pmlray.engine.model.prefix_cache import CachedRecord
from pmlray.memft import curriculum_order, paper_curriculum, prefix_ratio_curriculum
from pmlray.types import MemftRules, PlannedRun, Room


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a pack: its run and its rows, one for each record to memorise.

    `repeats`: how often an epoch shows each row; None: once.
    """

    run: PlannedRun
    rows: tuple[Row, ...]
    repeats: tuple[int, ...] | None = None

    @cached_property
    def shown(self) -> tuple[Row, ...]:
        """Rows of an epoch, each as often as it is shown."""
        return self.repeated(self.rows)

    def repeated(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """Return some of its rows, each as often as an epoch shows it."""
        if self.repeats is None:
            return tuple(rows)
        first = self.rows[0].sample
        return tuple(row for row in rows for _ in range(self.repeats[row.sample - first]))

    @property
    def train_steps(self) -> int:
        """Optimiser steps of this adapter's budget."""
        return self.run.point.train_steps

    def grows(self, rules: MemftRules) -> bool:
        """Return whether the set of its records in play grows while it trains."""
        return rules.temporal and self.run.method == "memft_sw"

    def sees_everything(self, batch_size: int, rules: MemftRules) -> bool:
        """Return whether every optimiser step scores all of its records, each once."""
        left_out = self.grows(rules) or self.run.method == "memft_rd"
        return len(self.rows) == len(self.shown) <= batch_size and not left_out

    def rate_at(self, recipe: Recipe, progress: float) -> float:
        """Return the learning rate after so many of its optimiser steps."""
        own = recipe.under(self.run.point.schedule)
        return own.rate_at(progress, self.train_steps, self.run.learning_rate)

    def shares_trunk(self, recipe: Recipe) -> bool:
        """Return whether a run of fewer steps is identical to this one up to its own decay."""
        return recipe.under(self.run.point.schedule).shares_trunks

    def rows_at(self, step: int, batch_size: int, rules: MemftRules) -> tuple[Row, ...]:
        """Return the rows of optimiser step `step`.

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
            shown = self.repeated([self.rows[i] for i in order])
            size = min(batch_size, len(shown))
            return tuple(shown[(step * size + j) % len(shown)] for j in range(size))
        shown = self.shown
        return tuple(shown[i] for i in batch_at(len(shown), step, batch_size, self.run.seed))


def batch_at(n_records: int, step: int, batch_size: int, seed: int) -> tuple[int, ...]:
    """Return the indices of an optimiser step's records; epochs are shuffled by the run's seed."""
    if n_records <= batch_size:
        return tuple(range(n_records))
    chosen = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, index = divmod(position, n_records)
        order = np.random.default_rng([seed, epoch]).permutation(n_records)
        chosen.append(int(order[index]))
    return tuple(chosen)


def make_members(
    runs: Sequence[PlannedRun],
    records: Sequence[Sequence[CachedRecord]],
    repeats: Sequence[Sequence[int]] | None = None,
) -> tuple[Member, ...]:
    """Make members of runs and their cached records, samples numbered over the whole pack.

    repeats: how often an epoch shows each record of each run; None: once.
    """
    members, sample = [], 0
    placements = list(dict.fromkeys(run.point.placement for run in runs))
    for adapter, (run, own) in enumerate(zip(runs, records, strict=True)):
        placed = placements.index(run.point.placement)
        rows = tuple(
            Row(adapter, sample + i, record, placed=placed) for i, record in enumerate(own)
        )
        sample += len(own)
        often = None if repeats is None else tuple(repeats[adapter])
        members.append(Member(run, rows, None if often is None or max(often) == 1 else often))
    return tuple(members)


class Admission:
    """Admission of members in groups: runs that share a trunk, and all methods and learning rates
    of one text, point and seed, whose costs are compared.

    Groups with the longest runs enter first, so that few run alone at the end, otherwise in the
    pack's order; smaller groups may pass one that does not fit. A group too large for the room
    trains alone.
    """

    def __init__(self, members: Sequence[Member], recipe: Recipe, room: Room | None) -> None:
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, member in enumerate(members):
            run, point = member.run, member.run.point
            key = (point.family, run.sequence_id, run.seed, run.phase)
            budget = None if member.shares_trunk(recipe) else point.train_steps
            groups.setdefault((*key, budget), []).append(i)
        self._room = room
        self._asks = [_ask(member, recipe.batch_size) for member in members]
        self._groups = sorted(
            groups.values(),
            key=lambda group: max(members[i].train_steps for i in group),
            reverse=True,
        )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Groups of members that enter together, by index."""
        return tuple(map(tuple, self._groups))

    @property
    def rows(self) -> int:
        """Largest number of rows of a step."""
        asked = sum(ask.rows for ask in self._asks)
        return asked if self._room is None else min(asked, self._room.rows)

    @property
    def positions(self) -> int:
        """Largest number of positions of a step."""
        asked = sum(ask.positions for ask in self._asks)
        return asked if self._room is None else min(asked, self._room.positions)

    @property
    def most_at_once(self) -> int:
        """Largest number of members that train at once."""
        if self._room is None:
            return len(self._asks)
        by_rows = _count_within(self._room.rows, (ask.rows for ask in self._asks))
        by_positions = _count_within(self._room.positions, (ask.positions for ask in self._asks))
        return max(min(by_rows, by_positions), *map(len, self._groups))

    def enter(self, inside: Collection[int], entered: Collection[int]) -> list[int]:
        """Return the members to start now.

        inside: members that began and have not ended. entered: all that ever began.
        """
        there, found = list(inside), list[int]()
        for group in self._groups:
            if group[0] in entered:
                continue
            if self._room is None or not there or self._fits([*there, *group]):
                there += group
                found += group
        return sorted(found)

    def _fits(self, members: Sequence[int]) -> bool:
        used = _sum([self._asks[i] for i in members])
        assert self._room is not None
        return used.rows <= self._room.rows and used.positions <= self._room.positions


def _ask(member: Member, batch_size: int) -> Room:
    """Return the rows and positions of a member's largest step."""
    lengths = sorted((row.length for row in member.shown), reverse=True)[:batch_size]
    return Room(len(lengths), sum(lengths))


def _count_within(limit: int, sizes: Iterable[int]) -> int:
    """Return how many of the smallest sizes fit a limit together."""
    return sum(total <= limit for total in accumulate(sorted(sizes)))


def _sum(asks: Sequence[Room]) -> Room:
    return Room(sum(ask.rows for ask in asks), sum(ask.positions for ask in asks))
