"""Budget of the search for the law of a sizing: the one asked for, or one by measured costs."""

from __future__ import annotations

from pmlray.api.sizing.plan import SizePlan
from pmlray.config.search_spec import Budget
from pmlray.design import CostModel
from pmlray.errors import SpecError
from pmlray.study.budget.packs import of_one_kind
from pmlray.study.sizing.compared import compared_first_runs
from pmlray.study.sizing.cost import law_budget, together
from pmlray.study.sizing.request import first_runs
from pmlray.types import PlannedRun


def asked_budget(plan: SizePlan, cost: CostModel) -> Budget:
    """Return the budget of the law's search: the request's, else by what trainings cost."""
    if plan.request.budget is not None:
        return Budget(gpu_seconds=plan.request.budget)
    return law_budget(cost, *plan.points)


def first_packs(plan: SizePlan, cost: CostModel) -> tuple[tuple[PlannedRun, ...], ...]:
    """Return the runs that the search begins with, in packs of places that can share one."""
    compares = plan.search.spec.space.placement is not None
    runs = compared_first_runs(plan.search) if compares else first_runs(plan.search)
    return of_one_kind(runs, cost)


def check_budget(plan: SizePlan, cost: CostModel) -> None:
    """Raise SpecError where the budget that is asked for is less than the first runs cost."""
    asked = plan.request.budget
    packs = first_packs(plan, cost)
    least = sum(together(cost, runs) for runs in packs)
    if asked is None or asked >= least:
        return
    n, places = sum(map(len, packs)), len(plan.options)
    of = "" if places == 1 else f" that compare {places} placements"
    fewer = "" if places == 1 else ", or name fewer placements (--placement)"
    raise SpecError(
        f"--budget is {asked:g}, but the first {n} runs{of} take about {least:.3g} gpu_seconds:"
        f" give at least {1.1 * least:.2g} (left out, it would be"
        f" {law_budget(cost, *plan.points).law_seconds:g}){fewer}"
    )
