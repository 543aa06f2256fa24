"""Cost of sizing a set of records, before it is begun.

All amounts are gpu_seconds: of optimiser steps, and of the checks between them. Loading the model,
starting Ray and decoding are in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pmlray.config.search_spec import Budget
from pmlray.design import ChosenRun, CostModel, PendingSpend
from pmlray.ports import ObservationStore
from pmlray.types import DesignPoint, PlannedRun

# The law's search may cost so many times what training the adapter on all records costs. What it
# begins with takes 1.2 to 1.4 of them; a law takes some runs beyond these that are chosen by it.
SEARCH_COST = 2.0
# Adapters that may be trained where the law is there: memft_ot ends once all is recalled, for which
# half of the steps may be enough; and a second rank may have to be tried.
LEAST_TRAININGS, MOST_TRAININGS = 0.5, 2.0
# Of a step, which goes forward and back: what looking at as many records takes.
LOOK_SHARE = 0.5
Rates = Literal["calibrated", "law", "guessed"]


@dataclass(frozen=True, slots=True)
class SizeCost:
    """`search`: what the law's search has before it, None where a law is given; `training`: of one
    adapter on all records, to its end. `rates` tells what both follow from: a few steps that were
    taken here, the law's own runs, or the base's size and a device's usual speed. `spent`: on these
    few steps.
    """

    search: float | None
    training: float
    rates: Rates
    spent: float = 0.0

    @property
    def least(self) -> float:
        """Of all: one of the search's own runs on all records may be enough."""
        return LEAST_TRAININGS * self.training if self.search is None else self.search

    @property
    def most(self) -> float:
        """Of all, where one larger rank has to be tried after the first."""
        return (self.search or 0.0) + MOST_TRAININGS * self.training

    @property
    def promised(self) -> float:
        """Of all, where no second rank is needed: the middle between no adapter beside the search
        and one, or that one where a law is given."""
        return self.training if self.search is None else self.search + 0.5 * self.training

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "predicted_gpu_seconds": self.promised,
            "predicted_gpu_seconds_range": [self.least, self.most],
            "predicted_search_gpu_seconds": self.search or 0.0,
            "predicted_training_gpu_seconds": self.training,
            "rates": self.rates,
            "calibration_gpu_seconds": self.spent,
        }


def looks_share(n_records: int, batch_size: int, train_steps: int) -> float:
    """Return the cost of a run's evaluations of all of its records as a share of its steps: one
    at the start, at each power of two, and at the end."""
    looks = train_steps.bit_length() + 2
    return LOOK_SHARE * looks * n_records / min(batch_size, n_records) / train_steps


def law_budget(cost: CostModel, point: DesignPoint) -> Budget:
    """Return the budget of the law of a set; point: the adapter's, of all records."""
    return Budget(gpu_seconds=max(0.1, round(SEARCH_COST * cost.predict(point), 1)))


def together(cost: CostModel, runs: Sequence[PlannedRun]) -> float:
    """Return the predicted cost of runs of one method in one pack, trunks shared."""
    chosen = [ChosenRun(run.point, (run.sequence_id, run.seed), done=False) for run in runs]
    return PendingSpend(cost, chosen).gpu_seconds


def spent_seconds(store: ObservationStore) -> float:
    """Return the cost of a store's runs, those without a result included."""
    done = sum(o.gpu_seconds for o in store.observations())
    return done + sum(f.gpu_seconds for f in store.failures())
