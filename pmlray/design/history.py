"""History of all chosen runs as the rules need it, updated run by run.

Chosen runs are never removed, so the cost of a choice depends only on the runs added since the last
one. Shapes: M cells of the grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pmlray.design.cost import CostModel
from pmlray.design.field import FittedForm, FloatArray
from pmlray.design.grid_field import GridField
from pmlray.design.space import ChosenRun, Placements, Replicate, log_coordinates
from pmlray.types import DesignPoint


class History:
    """History of the chosen runs: their `points` in order, and how often each cell was `seen`.

    placements: those of the design.
    """

    def __init__(
        self, runs: Iterable[ChosenRun] = (), placements: Placements | None = None
    ) -> None:
        self._placements = placements or {}
        self.points: list[DesignPoint] = []
        self.seen: Counter[DesignPoint] = Counter()
        self._uses: Counter[Replicate] = Counter()
        self._taken: dict[DesignPoint, set[Replicate]] = {}
        self._coverage: _Coverage | None = None
        self._spend: _Spend | None = None
        self._field: GridField | None = None
        for run in runs:
            self.add(run)

    def add(self, run: ChosenRun) -> None:
        """Add a chosen run."""
        self.points.append(run.point)
        self.seen[run.point] += 1
        self._uses[run.replicate] += 1
        self._taken.setdefault(run.point, set()).add(run.replicate)

    def took(self, point: DesignPoint, replicate: Replicate) -> bool:
        """Return whether this run was chosen already."""
        return replicate in self._taken.get(point, set())

    def next_replicates(
        self, cells: Sequence[DesignPoint], replicates: Sequence[Replicate]
    ) -> Iterator[tuple[DesignPoint, Replicate]]:
        """Yield every open cell with its least used free replicate: independent texts and seeds
        stay balanced over the whole design."""
        # The sort is stable: equally used replicates keep the order of the spec.
        balanced = sorted(replicates, key=self._uses.__getitem__)
        for cell in cells:
            taken = self._taken.get(cell, set())
            for replicate in balanced:
                if replicate not in taken:
                    yield cell, replicate
                    break

    def distances(self, grid: tuple[DesignPoint, ...]) -> FloatArray:
        """Return the distance of each cell of the grid to the nearest chosen point, in log space,
        (M,); inf where nothing was chosen."""
        if self._coverage is None or self._coverage.grid is not grid:
            self._coverage = _Coverage(grid, self._placements)
        return self._coverage.after(self.points)

    def fills_too_little(self, n_initial: int, share: float, cost: CostModel) -> bool:
        """Return whether space-filling runs have taken less than this share of the predicted spend.

        Space-filling runs are the first `n_initial` and those chosen while this condition held. The
        rule alone determines them, so a restarted search needs no record of them.
        """
        # Shares of the spend do not depend on the rate.
        rule = (n_initial, share, replace(cost, seconds_per_token=1.0))
        if self._spend is None or self._spend.rule != rule:
            self._spend = _Spend(*rule)
        return self._spend.falls_short_after(self.points)

    def field(
        self,
        beliefs: Sequence[FittedForm],
        base_loss: float,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
    ) -> GridField:
        """Return the field of these fitted forms over the grid, computed once."""
        if self._field is None or not self._field.is_of(beliefs, base_loss, grid, targets):
            self._field = GridField(beliefs, base_loss, grid, targets, self._placements)
        return self._field


class _Coverage:
    """Distances of a grid's cells to the nearest of a list of points that grows."""

    def __init__(self, grid: tuple[DesignPoint, ...], placements: Placements) -> None:
        self.grid, self._placements = grid, placements
        self._at_MX = log_coordinates(grid, grid, placements)
        self._nearest_M = np.full(len(grid), np.inf)
        self._known: set[DesignPoint] = set()
        self._n = 0

    def after(self, points: Sequence[DesignPoint]) -> FloatArray:
        for point in points[self._n :]:
            if point not in self._known:
                at = log_coordinates([point], self.grid, self._placements)
                apart = self._at_MX - at
                self._nearest_M = np.minimum(self._nearest_M, np.linalg.norm(apart, axis=1))
                self._known.add(point)
        self._n = len(points)
        return self._nearest_M


class _Spend:
    """Predicted cost of a growing list of runs, and the part of it that filled space."""

    def __init__(self, n_initial: int, share: float, cost: CostModel) -> None:
        self.rule = (n_initial, share, cost)
        self._n, self._filling, self._spent = 0, 0.0, 0.0

    def falls_short_after(self, points: Sequence[DesignPoint]) -> bool:
        n_initial, share, cost = self.rule
        for n in range(self._n, len(points)):
            seconds = cost.predict(points[n])
            if n < n_initial or self._filling < share * self._spent:
                self._filling += seconds
            self._spent += seconds
        self._n = len(points)
        return self._filling < share * self._spent
