"""Shares of a search's budget by phase, and budgets too small to tell anything.

All amounts are gpu_seconds.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from statistics import median

from pmlray.config.search_spec import SearchSpec
from pmlray.design import CostModel
from pmlray.design.packing import LEAST_RUNS
from pmlray.live_packs import Calibration
from pmlray.types import FailedRun, Observation, Phase

# The initial design is chosen without a law; most of the budget is for runs that a law chooses.
INITIAL_SHARE = 0.4
LEAST_ROUNDS, LEAST_OBSERVATIONS = 4, 12
# Overspend that a pack's watch may notice too late.
SLACK = 0.05


@dataclass(frozen=True)
class Allowance:
    """Limits of the packs of one phase."""

    budget: float

    @property
    def of_round(self) -> float:
        """The most that one adaptive pack is planned to take, so that there are LEAST_ROUNDS."""
        return self.budget * (1 - INITIAL_SHARE) / LEAST_ROUNDS

    def left_to_start(self, taken: float) -> float:
        """Return what is left to the initial design, of which so much is spent or in flight."""
        return INITIAL_SHARE * self.budget - taken

    def of_pack(self, taken: float, initial: bool = False) -> float:
        """Return the limit of a pack when the phase's other packs have taken, or are predicted to
        take, so much."""
        share = INITIAL_SHARE if initial else 1.0
        return max(0.0, (share + SLACK) * self.budget - taken)


def spent_seconds(
    observations: Iterable[Observation],
    failures: Iterable[FailedRun],
    calibration: Calibration | None,
) -> dict[Phase, float]:
    """Return the spend of each phase, without runs that machines lost."""
    spent: dict[Phase, float] = {"law": 0.0, "memft": 0.0}
    if calibration is not None:
        spent["law"] += calibration.spent_gpu_seconds
    measured = set[str]()
    for o in observations:
        measured.add(o.run_key)
        spent[o.phase] += o.gpu_seconds
    for f in failures:
        if is_charged(f, measured):
            spent[f.phase] += f.gpu_seconds
    return spent


def is_charged(failure: FailedRun, measured: Container[str]) -> bool:
    """Return whether a run without a result is charged: not where a machine lost it, nor where it
    was left out by a worker that was lost itself, and measured by the next."""
    again = failure.left_out and failure.run_key in measured
    return not failure.infrastructure and not again


def calibrated_cost(cost: CostModel, calibration: Calibration) -> CostModel:
    """Return the cost model with the rate that a few steps took."""
    tokens = sum(n * cost.work_per_step(point) for point, n in calibration.steps)
    return cost.at_rate(calibration.gpu_seconds, tokens)


def least_budget(spec: SearchSpec, cost: CostModel) -> float:
    """Return the budget of the law for LEAST_ROUNDS adaptive rounds and LEAST_OBSERVATIONS.

    The initial design takes the cheapest runs within its share, and rounds take runs as dear as the
    middle of the grid.
    """
    costs = sorted(cost.predict(point) for point in spec.space.points())
    n_initial = spec.design.n_initial
    in_rounds = max(
        LEAST_ROUNDS * (spec.design.pack_size or LEAST_RUNS), LEAST_OBSERVATIONS - n_initial
    )
    return max(
        n_initial * costs[0] / INITIAL_SHARE, in_rounds * median(costs) / (1 - INITIAL_SHARE)
    )


def budget_advice(spec: SearchSpec, cost: CostModel) -> str | None:
    """Return advice for a budget that is too small; None where it is not."""
    budget, least = spec.budget.law_seconds, least_budget(spec, cost)
    if budget >= least:
        return None
    return (
        f"budget.gpu_seconds {budget:.0f} is too small here for {LEAST_ROUNDS} adaptive rounds and"
        f" {LEAST_OBSERVATIONS} observations: {least:.0f} would do, or a smaller space"
        f" (one step of one adapter takes about {_per_step(spec, cost):.2g} gpu_seconds)"
    )


def _per_step(spec: SearchSpec, cost: CostModel) -> float:
    return median(cost.predict(p) / p.train_steps for p in spec.space.points())
