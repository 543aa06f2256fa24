"""Room of a pack within its device's memory, by an estimate made before its first step.

Packs measured before tell a driver what the next one may hold; of the first, and of one whose
adapters are larger than any before, only sizes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmlray.config.recipe import Recipe
from pmlray.engine.scheduling.members import Admission, Member
from pmlray.types import Room


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Bytes that a pack's steps take beside the base.

    `adapters`: of each placement, the number of its adapters and the bytes of one slot, with
    gradients and the optimiser's state; `position`: kept for backward for one position, of which a
    micro-batch has at most `most_positions`.
    """

    adapters: tuple[tuple[int, int], ...]
    position: float
    most_positions: int

    def of(self, slots: int, positions: int) -> float:
        """Return the bytes of a step of at most so many adapters and positions at once."""
        held = sum(min(count, slots) * size for count, size in self.adapters)
        return held + self.position * min(positions, self.most_positions)


def room_within(
    free: float, step: StepBytes, members: Sequence[Member], recipe: Recipe, room: Room | None
) -> Room | None:
    """Return the room of a pack whose steps fit into free bytes: the given one where it does.

    Where nothing does, members train one after another: the estimate may be too high.
    """
    whole = Admission(members, recipe, room)
    most, rows, positions = whole.most_at_once, whole.rows, whole.positions
    if step.of(most, positions) <= free:
        return room
    for n in range(most - 1, 0, -1):
        part = Room(max(1, rows * n // most), max(1, positions * n // most))
        if step.of(Admission(members, recipe, part).most_at_once, part.positions) <= free:
            return part
    return Room(1, 1)
