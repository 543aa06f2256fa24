"""Who of a pack trains, and who waits until others have ended and left room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

from pmlray.config.recipe import Recipe
from pmlray.engine.scheduling.members import Member
from pmlray.types import Room


class Admission:
    """Groups of members that enter together: what shares a trunk, and all methods and rates of one
    text, point and seed, whose costs are compared.

    Groups of the longest runs come first, so that few are left alone at the end, else in the order
    of the pack; one that finds no room lets smaller ones pass. A group that no room would do for
    trains alone.
    """

    def __init__(self, members: Sequence[Member], recipe: Recipe, room: Room | None) -> None:
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, member in enumerate(members):
            run, point = member.run, member.run.point
            key = (point.lora_rank, point.seq_len, run.sequence_id, run.seed, run.phase)
            budget = None if recipe.shares_trunks else point.train_steps
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
        """The members that enter together, by index."""
        return tuple(map(tuple, self._groups))

    @property
    def most_at_once(self) -> int:
        """How many members train at once, at the most."""
        if self._room is None:
            return len(self._asks)
        by_rows = _count_within(self._room.rows, (ask.rows for ask in self._asks))
        by_positions = _count_within(self._room.positions, (ask.positions for ask in self._asks))
        return max(min(by_rows, by_positions), *map(len, self._groups))

    def enter(self, inside: Collection[int], entered: Collection[int]) -> list[int]:
        """The members that enter now; `inside` have not ended yet, `entered` ever began."""
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
    """The most that a member's step holds."""
    lengths = sorted((row.length for row in member.rows), reverse=True)[:batch_size]
    return Room(len(lengths), sum(lengths))


def _count_within(limit: int, sizes: Iterable[int]) -> int:
    """How many of the smallest are within a limit together."""
    return sum(total <= limit for total in accumulate(sorted(sizes)))


def _sum(asks: Sequence[Room]) -> Room:
    return Room(sum(ask.rows for ask in asks), sum(ask.positions for ask in asks))
