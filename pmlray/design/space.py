"""Space of the runs that a search may choose from, and its chosen runs.

Shapes: M cells of the grid, 3 coordinates (rank, length, steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pmlray.types import DesignPoint

FloatArray = NDArray[np.float64]
Replicate = tuple[int, int]


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
        cells: points of (lora_rank, seq_len, train_steps).
        replicates: pairs of (sequence_id, seed).

    Example:
        >>> cells = tuple(DesignPoint(r, l, 100) for r in (1, 4, 16) for l in (32, 64, 128))
        >>> space = DesignSpace(cells, replicates=((0, 0), (1, 0)))
    """

    cells: tuple[DesignPoint, ...]
    replicates: tuple[Replicate, ...]

    def open_cells(self, chosen: Sequence[ChosenRun]) -> tuple[DesignPoint, ...]:
        """Return the cells with a replicate that was not chosen yet."""
        taken = {(run.point, run.replicate) for run in chosen}
        return tuple(
            cell
            for cell in self.cells
            if any((cell, replicate) not in taken for replicate in self.replicates)
        )


def log_coordinates(points: Sequence[DesignPoint], cells: Sequence[DesignPoint]) -> FloatArray:
    """Map points to (n, 3) log coordinates scaled so that the cells span the unit cube."""
    grid = np.log([[c.lora_rank, c.seq_len, c.train_steps] for c in cells])
    low, span = grid.min(axis=0), np.ptp(grid, axis=0)
    raw = np.log(np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float))
    return (raw.reshape(-1, 3) - low) / np.where(span > 0, span, 1.0)


def level_coordinates(
    points: Sequence[DesignPoint], cells: Sequence[DesignPoint]
) -> tuple[FloatArray, int]:
    """Map points to (n, 3) positions among the values of each axis, at the middle of equal shares
    of the unit interval; return them and the number of values of the longest axis."""
    grid = np.array([[c.lora_rank, c.seq_len, c.train_steps] for c in cells])
    raw = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points])
    values = [np.unique(axis) for axis in grid.T]
    shares: list[FloatArray] = [
        (np.searchsorted(taken, axis) + 0.5) / taken.size
        for taken, axis in zip(values, raw.T, strict=True)
    ]
    return np.stack(shares, axis=1), max(taken.size for taken in values)


def nearest_cell(
    candidates: Sequence[DesignPoint], point: DesignPoint, cells: Sequence[DesignPoint]
) -> DesignPoint:
    """Return the candidate nearest to a point, in log space."""
    at = log_coordinates(candidates, cells)
    distance = np.linalg.norm(at - log_coordinates([point], cells), axis=1)
    return candidates[int(np.argmin(distance))]
