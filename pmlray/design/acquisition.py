"""Rules that pick the next run from the affordable ones: pmlray's own, and rivals.

A rule sees a candidate for every open cell within the budget and everything known, and takes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import scipy

from pmlray.design.cost import CostModel
from pmlray.design.field import FittedForm, FloatArray
from pmlray.design.grid_field import GridField
from pmlray.design.history import History
from pmlray.design.space import (
    Candidate,
    ChosenRun,
    Placements,
    drawn_coordinates,
    level_coordinates,
    log_coordinates,
)
from pmlray.law import Placement
from pmlray.types import DesignPoint

Acquisition = Literal[
    "v_optimal",
    "v_optimal_single",
    "d_optimal",
    "random",
    "sobol",
    "lhs",
    "cheapest_first",
    "full_grid",
    "tpe",
    "gp",
]


@dataclass(frozen=True)
class DesignState:
    """State of a search's design: its runs, its fitted forms (best first), cost and remaining
    budget.

    `base_loss`: typical loss of the adapter-free base, nats. `budget_left`: gpu_seconds, less the
    predicted cost of pending runs, which is `training`. `pack`: the chosen runs in the pack being
    filled. `kept`: the History of the chosen runs, where the caller keeps one. `placements`: those
    of the design.
    """

    chosen: tuple[ChosenRun, ...]
    beliefs: tuple[FittedForm, ...]
    base_loss: float
    cost: CostModel
    budget_left: float
    pack: tuple[ChosenRun, ...] = ()
    training: float = 0.0
    kept: History | None = None
    placements: Placements = field(default_factory=dict[str, Placement])

    @cached_property
    def history(self) -> History:
        """History of all chosen runs, as the rules need it."""
        return History(self.chosen, self.placements) if self.kept is None else self.kept

    @cached_property
    def pending(self) -> Counter[DesignPoint]:
        """Number of runs chosen and not measured yet, by point."""
        return Counter(run.point for run in self.chosen if not run.done)

    def field(
        self,
        acquisition: Acquisition,
        grid: tuple[DesignPoint, ...],
        targets: tuple[DesignPoint, ...],
    ) -> GridField:
        """Return the field that a rule uses: that of all forms, or of the best one alone."""
        beliefs = self.beliefs if acquisition == "v_optimal" else self.beliefs[:1]
        return self.history.field(beliefs, self.base_loss, grid, targets)


@dataclass(frozen=True)
class Candidates:
    """Input of a rule: candidates within the budget, the whole grid, and the targets."""

    candidates: tuple[Candidate, ...]
    grid: tuple[DesignPoint, ...]
    targets: tuple[DesignPoint, ...]
    seed: int

    @property
    def cells(self) -> list[DesignPoint]:
        """Design points of the candidates, each once."""
        return [candidate.point for candidate in self.candidates]


Rule = Callable[[Candidates, DesignState], Candidate]


def _v_optimal(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the most variance removed at the targets per gpu_second, over the mixture of forms."""
    field = known.field("v_optimal", choice.grid, choice.targets)
    return _best(choice.candidates, field, field.gains(known.pending))


def _v_optimal_single(choice: Candidates, known: DesignState) -> Candidate:
    """Pick as `_v_optimal`, under the one form that fits best, as if it were true."""
    field = known.field("v_optimal_single", choice.grid, choice.targets)
    return _best(choice.candidates, field, field.gains(known.pending))


def _d_optimal(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the most information about the best form's parameters per gpu_second."""
    field = known.field("d_optimal", choice.grid, choice.targets)
    return _best(choice.candidates, field, field.information(known.pending))


def _random(choice: Candidates, known: DesignState) -> Candidate:
    """Pick uniformly from the affordable cells; the same history gives the same choice."""
    rng = np.random.default_rng([choice.seed, len(known.chosen)])
    return choice.candidates[int(rng.integers(len(choice.candidates)))]


def _sobol(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the affordable cell nearest to the next point of a scrambled Sobol sequence, in log
    space."""
    axes = 4 if known.placements else 3
    sequence = scipy.stats.qmc.Sobol(axes, rng=np.random.default_rng(choice.seed))
    if known.chosen:
        sequence.fast_forward(len(known.chosen))
    at = log_coordinates(choice.cells, choice.grid, known.placements)
    return _nearest(choice, at, drawn_coordinates(sequence.random(1), known.placements))


def _lhs(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the affordable cell nearest to the next point of a Latin hypercube over the grid's
    values.

    Hypercubes follow one another, each with as many points as the longest axis has values, so that
    no budget need be known: each meets every value of that axis once, and those of the others about
    equally often (McKay, Beckman and Conover 1979, DOI 10.1080/00401706.1979.10489755).
    """
    at, size = level_coordinates(choice.cells, choice.grid, known.placements)
    hypercube, place = divmod(len(known.chosen), size)
    rng = np.random.default_rng([choice.seed, hypercube])
    axes = 4 if known.placements else 3
    drawn = scipy.stats.qmc.LatinHypercube(axes, rng=rng).random(size)[place : place + 1]
    return _nearest(choice, at, drawn_coordinates(drawn, known.placements))


def _cheapest_first(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the cheapest cell, unmeasured ones before repeats."""
    seen = known.history.seen
    return min(choice.candidates, key=lambda o: (seen[o.point], o.gpu_seconds, o.point))


def _full_grid(choice: Candidates, known: DesignState) -> Candidate:
    """Pick cells in the order of the grid, then the next replicate of every cell."""
    seen = known.history.seen
    return min(choice.candidates, key=lambda o: (seen[o.point], o.point))


def fill_space(choice: Candidates, known: DesignState) -> Candidate:
    """Pick the cell farthest from all chosen points, in log space (Johnson, Moore and Ylvisaker
    1990, DOI 10.1016/0378-3758(90)90122-B); the first when nothing is chosen yet."""
    farthest = known.history.distances(choice.grid)
    place = {cell: i for i, cell in enumerate(choice.grid)}
    return choice.candidates[int(np.argmax(farthest[[place[o.point] for o in choice.candidates]]))]


RULES: dict[str, Rule] = {
    "v_optimal": _v_optimal,
    "v_optimal_single": _v_optimal_single,
    "d_optimal": _d_optimal,
    "random": _random,
    "sobol": _sobol,
    "lhs": _lhs,
    "cheapest_first": _cheapest_first,
    "full_grid": _full_grid,
}
# Optuna's own samplers, which pmlray.backends.optuna.sampler asks.
OPTUNA_RULES: frozenset[Acquisition] = frozenset({"tpe", "gp"})
# Rules that need a fitted law, and a share of the spend on runs that check it.
LAW_RULES = frozenset({"v_optimal", "v_optimal_single", "d_optimal"})


def _nearest(choice: Candidates, at: FloatArray, wanted: FloatArray) -> Candidate:
    return choice.candidates[int(np.argmin(np.linalg.norm(at - wanted, axis=1)))]


def _best(candidates: Sequence[Candidate], field: GridField, gain_M: FloatArray) -> Candidate:
    gain = gain_M[[field.place(candidate.point) for candidate in candidates]]
    return candidates[
        int(np.argmax(gain / np.array([candidate.gpu_seconds for candidate in candidates])))
    ]
