"""Which run to measure next: adaptive, cost-aware, and aware of what is still running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.design.acquisition import variance_reduction
from pmlray.design.cost import CostModel
from pmlray.design.space import ChosenRun, DesignSpace, Replicate, most_distant
from pmlray.law import LawFit
from pmlray.types import DesignPoint


@dataclass(frozen=True)
class DesignSettings:
    """`n_initial` log-spaced runs first; then `validation_share` of the runs fill space, so that
    the law is also checked where it thinks it is sure."""

    n_initial: int
    validation_share: float
    targets: tuple[DesignPoint, ...]


@dataclass(frozen=True)
class Knowledge:
    """What the search knows: its runs, its fitted laws (best first), cost and remaining budget.

    `base_loss`: typical loss of the adapter-free base, nats. `budget_left`: gpu_seconds, already
    without what pending runs are predicted to cost.
    """

    chosen: tuple[ChosenRun, ...]
    fits: tuple[LawFit, ...]
    base_loss: float
    cost: CostModel
    budget_left: float


def choose_run(
    space: DesignSpace, settings: DesignSettings, known: Knowledge
) -> tuple[DesignPoint, Replicate] | None:
    """The next run, or None when no open cell is within the remaining budget."""
    affordable = tuple(
        cell
        for cell in space.open_cells(known.chosen)
        if known.cost.predict(cell) <= known.budget_left
    )
    if not affordable:
        return None
    points = [run.point for run in known.chosen]
    if len(points) < settings.n_initial or not known.fits:
        # One start must not swallow the budget: half of it, evenly shared, is the most a run gets.
        limit = known.budget_left / 2 / max(1, settings.n_initial - len(points))
        cheap = [c for c in affordable if known.cost.predict(c) <= limit]
        cell = most_distant(cheap or [min(affordable, key=known.cost.predict)], points, space.cells)
    elif _is_validation(len(points), settings):
        cell = most_distant(affordable, points, space.cells)
    else:
        cell = _most_telling(affordable, settings.targets, known)
    return cell, space.next_replicate(cell, known.chosen)


def _is_validation(n_chosen: int, settings: DesignSettings) -> bool:
    turn, share = n_chosen - settings.n_initial, settings.validation_share
    return int(share * (turn + 1)) > int(share * turn)


def _most_telling(
    candidates: Sequence[DesignPoint], targets: Sequence[DesignPoint], known: Knowledge
) -> DesignPoint:
    measured = [run.point for run in known.chosen]
    gain = np.mean(
        [
            variance_reduction(fit, measured, candidates, targets, known.base_loss)
            for fit in known.fits
        ],
        axis=0,
    )
    costs = np.array([known.cost.predict(c) for c in candidates])
    return candidates[int(np.argmax(gain / costs))]
