"""Predicted cost of sizing a set of records.

All amounts are gpu_seconds: of optimiser steps, and of the checks between them. Loading the model,
starting Ray and decoding are not included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pmlray.config.search_spec import Budget
from pmlray.design import ChosenRun, CostModel, PendingSpend
from pmlray.ports import ObservationStore
from pmlray.types import DesignPoint, PlannedRun

# Budget of the law's search, in trainings of the adapter on all records. Its first runs take 1.2 to
# 1.4 of these; a law needs some further runs, which it chooses itself.
SEARCH_COST = 2.0
# The same where places are compared, of a training at each: its first runs take up to 1.5 of these
# where small adapters need all of the records, and the law of one place tells of the others.
COMPARED_COST = 1.75
# Least and most trainings of an adapter once the law is known: memft_ot ends once all is recalled,
# for which half of the steps may be enough; and a second rank may have to be tried.
LEAST_TRAININGS, MOST_TRAININGS = 0.5, 2.0
# Cost of evaluating records as a share of a training step on as many, which also goes backward.
LOOK_SHARE = 0.5
Rates = Literal["calibrated", "law", "guessed"]


@dataclass(frozen=True, slots=True)
class SizeCost:
    """Predicted cost of a sizing in gpu_seconds.

    `search`: remaining cost of the law's search, None where a law is given; `training`: of one
    adapter on all records, to its end. `rates` names the source of both: a few timed steps on this
    machine (`calibrated`), the law's own runs (`law`), or the base's size and a device's usual
    speed (`guessed`). `spent`: on these few steps. `by_place`: of training at each place, where
    several are compared; `training` is then that of the dearest.
    """

    search: float | None
    training: float
    rates: Rates
    spent: float = 0.0
    by_place: Mapping[str | None, float] = field(default_factory=dict[str | None, float])

    @property
    def least(self) -> float:
        """Least cost in all: one of the search's own runs on all records may be enough."""
        return LEAST_TRAININGS * self.training if self.search is None else self.search

    @property
    def most(self) -> float:
        """Most cost in all, where one larger rank has to be tried after the first."""
        return (self.search or 0.0) + MOST_TRAININGS * self.training

    @property
    def promised(self) -> float:
        """Expected cost in all, where no second rank is needed.

        With a search, the middle between no adapter beside it and one; with a given law, one.
        """
        return self.training if self.search is None else self.search + 0.5 * self.training

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "predicted_gpu_seconds": self.promised,
            "predicted_gpu_seconds_range": [self.least, self.most],
            "predicted_search_gpu_seconds": self.search or 0.0,
            "predicted_training_gpu_seconds": self.training,
            "rates": self.rates,
            "calibration_gpu_seconds": self.spent,
        }


def looks_share(n_records: int, batch_size: int, train_steps: int) -> float:
    """Return the cost of a run's evaluations as a share of its steps.

    All of its records are evaluated at the start, at each power of two, and at the end.
    """
    looks = train_steps.bit_length() + 2
    return LOOK_SHARE * looks * n_records / min(batch_size, n_records) / train_steps


def law_budget(cost: CostModel, *points: DesignPoint) -> Budget:
    """Return the budget of the law's search; points: the adapter's, of all records, at each place
    that is compared."""
    share = SEARCH_COST if len(points) == 1 else COMPARED_COST
    return Budget(gpu_seconds=max(0.1, round(share * sum(map(cost.predict, points)), 1)))


def together(cost: CostModel, runs: Sequence[PlannedRun]) -> float:
    """Return the predicted cost of runs of one method in one pack, with shared trunks."""
    chosen = [ChosenRun(run.point, (run.sequence_id, run.seed), done=False) for run in runs]
    return PendingSpend(cost, chosen).gpu_seconds


def spent_seconds(store: ObservationStore) -> float:
    """Return the cost of a store's runs, those without a result included."""
    done = sum(o.gpu_seconds for o in store.observations())
    return done + sum(f.gpu_seconds for f in store.failures())
