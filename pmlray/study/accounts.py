"""What a search has spent, what is out, and what its next pack may take."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from pmlray.config.prepared import PreparedSearch
from pmlray.design import CostModel
from pmlray.errors import DesignError
from pmlray.live_packs import Calibration
from pmlray.study.allowance import Allowance, budget_advice, calibrated_cost, least_budget
from pmlray.study.measured import Measured
from pmlray.types import FailedRun, Phase, PlannedRun

log = logging.getLogger(__name__)


class Accounts:
    """Keeps the spend of `measured` up, and says what packs may take. All amounts are gpu_seconds.

    first_cost: the cost model before anything was measured; failures: those there are already.
    """

    def __init__(
        self,
        search: PreparedSearch,
        first_cost: CostModel,
        measured: Measured,
        failures: Iterable[FailedRun],
    ) -> None:
        self._spec = search.spec
        self._first_cost, self._measured = first_cost, measured
        self.calibration: Calibration | None = None
        self._allowances: dict[Phase, Allowance] = {
            "law": Allowance(search.spec.budget.law_seconds),
            "memft": Allowance(search.spec.budget.memft_seconds),
        }
        for failure in failures:
            self.charge(failure)

    def charge(self, failure: FailedRun) -> float:
        """Count what a run without a result has cost the budget; 0 for what machines have lost."""
        if failure.infrastructure:
            return 0.0
        self._measured.charge(failure.phase, failure.gpu_seconds)
        return failure.gpu_seconds

    def calibrated(self, found: Calibration) -> CostModel:
        """The cost model by what a few steps cost, by which is planned until runs are measured.

        A budget that is too small for a law is said to be; DesignError where it is smaller than
        one run.
        """
        spec, budget = self._spec, self._spec.budget.law_seconds
        self.calibration = found
        cost = calibrated_cost(self._first_cost, found)
        self._measured.charge("law", found.spent_gpu_seconds)
        self._measured.calibrate(cost)
        cheapest = min(map(cost.predict, spec.space.points()))
        if cheapest > budget:
            raise DesignError(
                f"budget.gpu_seconds {budget:.0f} is less than the cheapest run takes here, about"
                f" {cheapest:.0f}; for a law it needs about {least_budget(spec, cost):.0f}, or a"
                " smaller space"
            )
        if not self._measured.observations and (advice := budget_advice(spec, cost)) is not None:
            log.warning(advice)
        return cost

    def is_starting(self, phase: Phase) -> bool:
        """Whether the initial design is not measured yet."""
        return phase == "law" and len(self._measured.plain) < self._spec.design.n_initial

    def left_to_start(self, pending: Iterable[PlannedRun]) -> float:
        """What the initial design may still take, beside what is out."""
        return self._allowances["law"].left_to_start(self._taken("law", pending))

    @property
    def of_round(self) -> float:
        """What an adaptive pack is planned to take at most."""
        return self._allowances["law"].of_round

    def limit_of(self, runs: Collection[PlannedRun], pending: Iterable[PlannedRun]) -> float:
        """The most that a pack of these runs may spend."""
        phase = next(iter(runs)).phase
        taken = self._taken(phase, pending)
        return self._allowances[phase].of_pack(taken, self.is_starting(phase))

    def _taken(self, phase: Phase, pending: Iterable[PlannedRun]) -> float:
        cost = self._measured.cost()
        out = (cost.predict(run.point) for run in pending if run.phase == phase)
        return self._measured.spent[phase] + sum(out)
