"""Field of a law over the cells of a search's grid, whose features are computed once.

Shapes: M cells of the grid, T targets, G features, n pending points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_

import numpy as np

from pmlray.design.field import FittedForm, FloatArray, law_field
from pmlray.design.space import Placements, placed
from pmlray.types import DesignPoint


@dataclass(frozen=True)
class _Updated:
    """Covariances of a field once pending runs are measured: of cells with targets (M, T), and the
    variances of cells (M,) and targets (T,)."""

    shared_MT: FloatArray
    own_M: FloatArray
    own_T: FloatArray


class GridField:
    """Field of the fitted forms over a grid, updated by pending runs.

    The result depends only on how often each cell is pending, not on earlier calls, so a restarted
    search makes the same choices. Pending runs are few beside the features of a law of several
    placements, so the update is that of a Gaussian process: with K the covariance before and Q the
    pending points, K(a, b) - K(a, Q) (K(Q, Q) + noise)^-1 K(Q, b).
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
        # Before anything is pending the covariance is the product of features.
        self._phi_MG = self._open.features(cells, measured=True)
        self._phi_TG = self._open.features(at, measured=False)
        self._noise_M = self._open.noise(cells)
        self._before = _Updated(
            self._phi_MG @ self._phi_TG.T,
            np.einsum("mg,mg->m", self._phi_MG, self._phi_MG),
            np.einsum("tg,tg->t", self._phi_TG, self._phi_TG),
        )
        self._at = {cell: i for i, cell in enumerate(grid)}
        self._last: tuple[Counter[DesignPoint], _Updated] | None = None

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

    def gains(self, pending: Counter[DesignPoint]) -> FloatArray:
        """Return LawField.gains of every cell for the targets after the pending runs, (M,)."""
        after = self._after(pending)
        return (after.shared_MT**2).mean(axis=1) / (self._noise_M + after.own_M)

    def information(self, pending: Counter[DesignPoint]) -> FloatArray:
        """Return LawField.information of every cell after the pending runs, (M,)."""
        return np.log1p(self._after(pending).own_M / self._noise_M)

    def at_targets(
        self, pending: Counter[DesignPoint], cell: DesignPoint
    ) -> tuple[FloatArray, FloatArray]:
        """Return the variance at the targets after the pending runs, and when the cell is measured
        too, nats^2, (T,) each."""
        after, at = self._after(pending), self._at[cell]
        removed_T = after.shared_MT[at] ** 2 / (self._noise_M[at] + after.own_M[at])
        return after.own_T, after.own_T - removed_T

    def place(self, cell: DesignPoint) -> int:
        """Return the index of a cell in the grid."""
        return self._at[cell]

    def _after(self, pending: Counter[DesignPoint]) -> _Updated:
        if self._last is None or self._last[0] != pending:
            self._last = (Counter(pending), self._updated(pending))
        return self._last[1]

    def _updated(self, pending: Counter[DesignPoint]) -> _Updated:
        if not pending:
            return self._before
        # In an order of their own; a run that was added by hand may be off the grid.
        cells = sorted(self._at[point] for point in pending if point in self._at)
        beside = sorted(point for point in pending if point not in self._at)
        phi_nG, noise_n = self._phi_MG[cells], self._noise_M[cells]
        if beside:
            off = placed(beside, self._placements)
            phi_nG = np.vstack([phi_nG, self._open.features(off, measured=True)])
            noise_n = np.concatenate([noise_n, self._open.noise(off)])
        times = [pending[point] for point in (*(self._grid[i] for i in cells), *beside)]
        known_nn = phi_nG @ phi_nG.T + np.diag(noise_n / np.array(times, dtype=float))
        along_Mn, along_Tn = self._phi_MG @ phi_nG.T, self._phi_TG @ phi_nG.T
        weight_Mn = np.linalg.solve(known_nn, along_Mn.T).T
        weight_Tn = np.linalg.solve(known_nn, along_Tn.T).T
        before = self._before
        return _Updated(
            before.shared_MT - weight_Mn @ along_Tn.T,
            np.maximum(before.own_M - np.einsum("mn,mn->m", weight_Mn, along_Mn), 0.0),
            np.maximum(before.own_T - np.einsum("tn,tn->t", weight_Tn, along_Tn), 0.0),
        )
