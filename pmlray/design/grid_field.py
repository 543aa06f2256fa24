"""A law's field over the cells that a search chooses from: features once, pending runs one by one.

Shapes: M cells of the grid, T targets, G features.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

from pmlray.design.field import Belief, FloatArray, LawField, law_field
from pmlray.types import DesignPoint


class GridField:
    """The field of beliefs as it is once pending runs, of which there are ever more, are measured.

    Cells are looked up among features that were computed for the whole grid, so that it does not
    depend on how many runs were pending when it was asked before, to the last bit.
    """

    def __init__(
        self,
        beliefs: Sequence[Belief],
        base_loss: float,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
    ) -> None:
        self._beliefs, self._base_loss = tuple(beliefs), base_loss
        self._grid, self._targets = grid, targets
        self._open = self._field = law_field(beliefs, base_loss)
        self._phi_MG = self._field.features(grid, measured=True)
        self._phi_TG = self._field.features(targets, measured=False)
        self._noise_M = self._field.noise(grid)
        self._at = {cell: i for i, cell in enumerate(grid)}
        self._pending: list[DesignPoint] = []

    def is_of(
        self,
        beliefs: Sequence[Belief],
        base_loss: float,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
    ) -> bool:
        """Whether this is the field of those."""
        same = len(beliefs) == len(self._beliefs) and all(map(is_, beliefs, self._beliefs))
        return (
            same
            and base_loss == self._base_loss
            and grid is self._grid
            and targets == self._targets
        )

    def after(self, pending: Sequence[DesignPoint]) -> LawField:
        """The field once these are measured too."""
        n = len(self._pending)
        if n > len(pending) or not all(map(is_, self._pending, pending)):
            self._field, self._pending, n = self._open, [], 0
        for point in pending[n:]:
            at = self._at.get(point)
            # One that was added by hand may lie off the grid.
            self._field = (
                self._field.after([point])
                if at is None
                else self._field.measured(self._phi_MG[at], self._noise_M[at])
            )
        self._pending = list(pending)
        return self._field

    def gains(self, pending: Sequence[DesignPoint]) -> FloatArray:
        """LawField.gains of every cell for the targets once these are measured too, (M,)."""
        field = self.after(pending)
        return field.gains_of(self._phi_MG, self._noise_M, self._phi_TG)

    def information(self, pending: Sequence[DesignPoint]) -> FloatArray:
        """LawField.information of every cell once these are measured too, (M,)."""
        return self.after(pending).information_of(self._phi_MG, self._noise_M)

    def place(self, cell: DesignPoint) -> int:
        """Where a cell stands in the grid."""
        return self._at[cell]
