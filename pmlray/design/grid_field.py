"""Field of a law over the cells of a search's grid, whose features are computed once.

Shapes: M cells of the grid, T targets, G features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import is_

import numpy as np

from pmlray.design.field import FittedForm, FloatArray, LawField, law_field
from pmlray.design.space import Placements, placed
from pmlray.types import DesignPoint


class GridField:
    """Field of the fitted forms over a grid, updated by pending runs.

    The result depends only on how often each cell is pending, not on earlier calls, so a restarted
    search makes the same choices.
    """

    def __init__(
        self,
        beliefs: Sequence[FittedForm],
        base_loss: float,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
        placements: Placements | None = None,
    ) -> None:
        self._placements = placements or {}
        self._beliefs, self._base_loss = tuple(beliefs), base_loss
        self._grid, self._targets = grid, targets
        self._open = law_field(beliefs, base_loss)
        cells, at = placed(grid, self._placements), placed(targets, self._placements)
        self._phi_MG = self._open.features(cells, measured=True)
        self._phi_TG = self._open.features(at, measured=False)
        self._noise_M = self._open.noise(cells)
        self._at = {cell: i for i, cell in enumerate(grid)}

    def is_of(
        self,
        beliefs: Sequence[FittedForm],
        base_loss: float,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
    ) -> bool:
        """Return whether this is the field of these fitted forms, grid and targets."""
        same = len(beliefs) == len(self._beliefs) and all(map(is_, beliefs, self._beliefs))
        return (
            same
            and base_loss == self._base_loss
            and grid is self._grid
            and targets == self._targets
        )

    def after(self, pending: Counter[DesignPoint]) -> LawField:
        """Return the field after the pending runs are measured, each point as often as `pending`
        counts."""
        times_M = np.zeros(len(self._grid))
        beside: list[DesignPoint] = []
        for point, times in pending.items():
            at = self._at.get(point)
            if at is None:
                # A run that was added by hand, off the grid.
                beside += [point] * times
            else:
                times_M[at] = times
        field = self._open.often_measured(self._phi_MG, self._noise_M, times_M)
        return field.after(placed(beside, self._placements)) if beside else field

    def gains(self, pending: Counter[DesignPoint]) -> FloatArray:
        """Return LawField.gains of every cell for the targets after the pending runs, (M,)."""
        return self.after(pending).gains_of(self._phi_MG, self._noise_M, self._phi_TG)

    def information(self, pending: Counter[DesignPoint]) -> FloatArray:
        """Return LawField.information of every cell after the pending runs, (M,)."""
        return self.after(pending).information_of(self._phi_MG, self._noise_M)

    def place(self, cell: DesignPoint) -> int:
        """Return the index of a cell in the grid."""
        return self._at[cell]
