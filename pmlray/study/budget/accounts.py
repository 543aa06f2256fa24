"""The spend of a search, by phase and by pack, and the limit of its next pack."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import ChosenRun, CostModel, PendingSpend
from pmlray.errors import DesignError
from pmlray.live_packs import Calibration
from pmlray.study.budget.allowance import (
    Allowance,
    budget_advice,
    calibrated_cost,
    is_charged,
    least_budget,
)
from pmlray.study.budget.run_statistics import Measured
from pmlray.types import FailedRun, Method, Pack, Phase, PlannedRun

log = logging.getLogger(__name__)


class Accounts:
    """Spend and limits of a search's packs. All amounts are gpu_seconds.

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
        # The limits of packs that are out, by their ids, and what runs without a result have cost
        # by the round of their pack.
        self._out: dict[str, tuple[Phase, float]] = {}
        self._lost: defaultdict[int, float] = defaultdict(float)
        for failure in failures:
            self.charge(failure)

    def charge(self, failure: FailedRun) -> float:
        """Charge a run without a result and return its cost: 0 where a machine lost it, or where
        it was measured after all."""
        if not is_charged(failure, self._measured.observations):
            return 0.0
        self._measured.charge(failure.phase, failure.gpu_seconds)
        self._lost[failure.round] += failure.gpu_seconds
        return failure.gpu_seconds

    def calibrated(self, found: Calibration) -> CostModel:
        """Return the cost model of a few measured steps, used until whole runs are measured.

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

    def left_to_start(self, pending: Iterable[PlannedRun]) -> float:
        """Return the budget left to the initial design, less what its packs in flight may take."""
        taken = self._measured.spent["law"] + self._predicted(pending, "law")
        return self._allowances["law"].left_to_start(taken)

    @property
    def of_round(self) -> float:
        """Return the most that an adaptive pack is planned to take."""
        return self._allowances["law"].of_round

    def hand_out(
        self, pack: Pack, waiting: Iterable[PlannedRun], n_devices: int, *, initial: bool
    ) -> Pack:
        """Return a pack with its limit, and count it as in flight until `back`.

        The limit is its predicted cost and a device's share of the unclaimed budget: all limits
        together are within the phase's budget, whatever packs take. waiting: runs of packs that are
        chosen and not handed out; initial: whether it is of the initial design. A pack that goes on
        may spend what it has spent before besides.
        """
        phase = pack.runs[0].phase
        held = sum(limit for of, limit in self._out.values() if of == phase)
        taken = self._measured.spent[phase] + held + self._predicted(waiting, phase)
        planned = self._predicted(pack.runs, phase)
        left = self._allowances[phase].of_pack(taken, initial)
        if planned > left:
            # The first run may be dearer than the whole share of the initial design.
            left = self._allowances[phase].of_pack(taken)
        limit = min(left, planned + max(0.0, left - planned) / n_devices)
        self._out[pack.pack_id] = (phase, limit)
        before = sum(
            o.gpu_seconds for o in self._measured.observations.values() if o.round == pack.round
        )
        return replace(pack, gpu_seconds=before + self._lost[pack.round] + limit)

    def back(self, pack: Pack) -> None:
        """Count a pack as no longer in flight."""
        self._out.pop(pack.pack_id, None)

    def _predicted(self, runs: Iterable[PlannedRun], phase: Phase) -> float:
        """Return the predicted cost of the runs without a result, shared steps counted once."""
        cost, of_method = self._measured.cost(), dict[Method, PendingSpend]()
        for run in runs:
            if run.phase == phase and run.run_key not in self._measured.observations:
                spend = of_method.setdefault(run.method, PendingSpend(cost))
                spend.add(ChosenRun(run.point, (run.sequence_id, run.seed), done=False))
        return sum(spend.gpu_seconds for spend in of_method.values())
