"""Which run to measure next: adaptive, cost-aware, and aware of what is still running.

A pack is chosen run by run, each counting those before it as measured: the greedy joint choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pmlray.design.acquisition import LAW_RULES, RULES, Acquisition, Choice, Knowledge, fill_space
from pmlray.design.cost import CostModel
from pmlray.design.space import DesignSpace, Replicate
from pmlray.types import DesignPoint


@dataclass(frozen=True)
class DesignSettings:
    """`n_initial` log-spaced runs first, then the rule `acquisition`; at least `validation_share`
    of the spend fills space, so that the law is also checked where it thinks it is sure."""

    n_initial: int
    validation_share: float
    targets: tuple[DesignPoint, ...]
    acquisition: Acquisition = "v_optimal"
    seed: int = 0


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
    choice = Choice(affordable, space.cells, settings.targets, settings.seed)
    if settings.acquisition not in LAW_RULES:
        cell = RULES[settings.acquisition](choice, known)
    elif len(known.chosen) < settings.n_initial or not known.beliefs:
        cell = _initial(choice, settings, known)
    elif _validates(known.points, settings, known.cost):
        cell = fill_space(choice, known)
    else:
        cell = RULES[settings.acquisition](choice, known)
    return cell, space.next_replicate(cell, known.chosen)


def _initial(choice: Choice, settings: DesignSettings, known: Knowledge) -> DesignPoint:
    # One start must not swallow the budget: half of it, evenly shared, is the most a run gets.
    limit = known.budget_left / 2 / max(1, settings.n_initial - len(known.chosen))
    cheap = tuple(c for c in choice.cells if known.cost.predict(c) <= limit)
    cells = cheap or (min(choice.cells, key=known.cost.predict),)
    return fill_space(Choice(cells, choice.grid, choice.targets, choice.seed), known)


def _validates(points: Sequence[DesignPoint], settings: DesignSettings, cost: CostModel) -> bool:
    """Whether the next run fills space: the share of the spend that did has fallen short.

    Which of the earlier runs did follows from the same rule, so that a search that starts again
    needs no record of it.
    """
    filling = spent = sum(cost.predict(p) for p in points[: settings.n_initial])
    for point in points[settings.n_initial :]:
        seconds = cost.predict(point)
        if filling < settings.validation_share * spent:
            filling += seconds
        spent += seconds
    return filling < settings.validation_share * spent
