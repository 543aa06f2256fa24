"""Space of the runs that a search may choose from, and its chosen runs.

Shapes: M cells of the grid, K placements, 3 + K coordinates (rank, length, steps, and the placement
where there are several).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pmlray.law import PlacedPoint, Placement
from pmlray.types import DesignPoint

FloatArray = NDArray[np.float64]
Replicate = tuple[int, int]
# Placements of a design by the names that its points have; empty where it has one without a name.
Placements = Mapping[str, Placement]
# Points of two placements are as far apart as opposite corners of the unit cube, sqrt(3).
APART = math.sqrt(1.5)


@dataclass(frozen=True, slots=True)
class ChosenRun:
    """Design point with its replicate (sequence_id, seed); `done` is False while it runs."""

    point: DesignPoint
    replicate: Replicate
    done: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """Run that may be chosen next, and what it would add to the cost, gpu_seconds."""

    point: DesignPoint
    replicate: Replicate
    gpu_seconds: float


@dataclass(frozen=True)
class DesignSpace:
    """Cells of a grid and the replicates at which each may be measured.

    Args:
        cells: points of (lora_rank, seq_len, train_steps), a tuple or a list.
        replicates: pairs of (sequence_id, seed), a tuple or a list.
        placements: what the law calls the placements of the cells, by the cells' names; empty where
            these have none.

    Example:
        >>> cells = [DesignPoint(r, l, 100) for r in (1, 4, 16) for l in (32, 64, 128)]
        >>> len(DesignSpace(cells, replicates=[(0, 0), (1, 0)]).cells)
        9
    """

    cells: Sequence[DesignPoint]
    replicates: Sequence[Replicate]
    placements: Placements = field(default_factory=dict[str, Placement])

    def __post_init__(self) -> None:
        # Lists are taken too, and no caller can change them later.
        object.__setattr__(self, "cells", tuple(self.cells))
        pairs = tuple((sequence_id, seed) for sequence_id, seed in self.replicates)
        object.__setattr__(self, "replicates", pairs)

    def open_cells(self, chosen: Sequence[ChosenRun]) -> tuple[DesignPoint, ...]:
        """Return the cells with a replicate that was not chosen yet."""
        taken = {(run.point, run.replicate) for run in chosen}
        return tuple(
            cell
            for cell in self.cells
            if any((cell, replicate) not in taken for replicate in self.replicates)
        )


def placed(
    points: Sequence[DesignPoint], placements: Placements
) -> tuple[DesignPoint | PlacedPoint, ...]:
    """Return points as a law takes them: of its reference's ranks, or each at its placement."""
    return tuple(
        point if point.placement is None else PlacedPoint(point, placements[point.placement])
        for point in points
    )


def log_coordinates(
    points: Sequence[DesignPoint],
    cells: Sequence[DesignPoint],
    placements: Placements | None = None,
) -> FloatArray:
    """Map points to (n, 3 + K) log coordinates scaled so that the cells span the unit cube.

    Of several placements the first is the number of the adapter's parameters, and the last K tell
    the placements apart.
    """
    grid = np.log(_axes(cells, placements))
    low, span = grid.min(axis=0), np.ptp(grid, axis=0)
    scaled = (np.log(_axes(points, placements)) - low) / np.where(span > 0, span, 1.0)
    return np.hstack([scaled, _apart(points, placements)])


def level_coordinates(
    points: Sequence[DesignPoint],
    cells: Sequence[DesignPoint],
    placements: Placements | None = None,
) -> tuple[FloatArray, int]:
    """Map points to (n, 3 + K) positions among the values of each axis, at the middle of equal
    shares of the unit interval, and their placements; return them and the number of values of the
    longest axis."""
    grid, raw = _axes(cells, placements), _axes(points, placements)
    values = [np.unique(axis) for axis in grid.T]
    shares: list[FloatArray] = [
        (np.searchsorted(taken, axis) + 0.5) / taken.size
        for taken, axis in zip(values, raw.T, strict=True)
    ]
    at = np.hstack([np.stack(shares, axis=1), _apart(points, placements)])
    return at, max(len(placements or ()), *(taken.size for taken in values))


def drawn_coordinates(drawn: FloatArray, placements: Placements) -> FloatArray:
    """Return points (n, 3 + K) of the unit cube from draws (n, 3), or (n, 4) where there are
    several placements, of which the fourth draws one."""
    if not placements:
        return drawn
    which = (drawn[:, 3] * len(placements)).astype(np.int64)
    return np.hstack([drawn[:, :3], APART * np.eye(len(placements))[which]])


def nearest_cell(
    candidates: Sequence[DesignPoint],
    point: DesignPoint,
    cells: Sequence[DesignPoint],
    placements: Placements | None = None,
) -> DesignPoint:
    """Return the candidate nearest to a point, in log space, of its placement where there are."""
    at = log_coordinates(candidates, cells, placements)
    distance = np.linalg.norm(at - log_coordinates([point], cells, placements), axis=1)
    return candidates[int(np.argmin(distance))]


def _axes(points: Sequence[DesignPoint], placements: Placements | None) -> FloatArray:
    """Return rank, or the number of parameters, seq_len and train_steps of points, (n, 3)."""
    axes = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float)
    if placements:
        per_rank = {name: placement.params_per_rank for name, placement in placements.items()}
        axes[:, 0] *= [per_rank[str(p.placement)] for p in points]
    return axes.reshape(-1, 3)


def _apart(points: Sequence[DesignPoint], placements: Placements | None) -> FloatArray:
    """Return the coordinates of the points' placements, (n, K)."""
    places = {name: k for k, name in enumerate(placements or ())}
    if not places:
        return np.zeros((len(points), 0))
    return APART * np.eye(len(places))[[places[str(p.placement)] for p in points]]
