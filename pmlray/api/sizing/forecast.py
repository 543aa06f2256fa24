"""Forecast of the cost of `pmlray size`, by a few real steps where this machine trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from pmlray.api.adapter_memory import check_memory
from pmlray.api.environment.machine import TRAIN_PACKAGES
from pmlray.api.sizing.budget import asked_budget, check_budget
from pmlray.api.sizing.places import PlaceOption
from pmlray.api.sizing.plan import SizePlan
from pmlray.backends.store.file_store import FileStore
from pmlray.config.cluster_address import LOCAL, ray_address
from pmlray.design import CostModel
from pmlray.live_packs import Calibration
from pmlray.study.budget.allowance import calibrated_cost
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.cost import Rates, SizeCost, looks_share, spent_seconds
from pmlray.study.sizing.request import METHOD, UNSETTLED
from pmlray.types import DesignPoint, Observation, Pack

# Least device-seconds of a step: a small model's is bound by overhead, not by arithmetic.
LEAST_STEP_SECONDS_GPU, LEAST_STEP_SECONDS_CPU = 0.02, 0.005
# Device-seconds of timed steps: on a busy machine a step's CPU seconds vary by a sixth.
ENOUGH_SECONDS = 10.0


def forecast(plan: SizePlan, address: str | None, say: Callable[[str], None]) -> SizeCost:
    """Return the predicted cost of a plan.

    The rate is that of the runs of a stored law or of a search already begun, else that of a few
    timed steps; on a cluster, or without the train extra, it is guessed. say: called before the
    timed steps, which take seconds. ModelError where this machine's memory holds no such adapter,
    SpecError where the budget that is asked for is too small.
    """
    for option in plan.options:
        check_memory(option.training, [option.own_point], plan.request.profile, address)
    known, of_law = _known(plan)
    cost, rates, spent = _cost(plan, known, address, say)
    search: float | None = None
    if plan.stored is None:
        budget = plan.search.spec.budget
        if budget == UNSETTLED:
            check_budget(plan, cost)
            budget = asked_budget(plan, cost)
        search = max(0.0, budget.law_seconds - of_law)
    by_place = {option.name: cost.predict(option.point) for option in plan.options}
    if known and len(plan.options) > 1:
        by_place = {o.name: plan.cost_by(known, o).predict(o.point) for o in plan.options}
    several = by_place if len(by_place) > 1 else {}
    return SizeCost(search, max(by_place.values()), rates, spent, several)


def check_affordable(plan: SizePlan, address: str | None, say: Callable[[str], None]) -> None:
    """Raise SpecError where the request's budget is too small for the first runs of a new search,
    by a few timed steps where this machine trains."""
    new = plan.stored is None and plan.search.spec.budget == UNSETTLED
    if new and plan.request.budget is not None and not _known(plan)[0]:
        check_budget(plan, _cost(plan, (), address, say)[0])


def _cost(
    plan: SizePlan,
    known: Sequence[Observation],
    address: str | None,
    say: Callable[[str], None],
) -> tuple[CostModel, Rates, float]:
    """Return the cost model of the options' points, its source, and gpu_seconds spent on it.

    known: runs that were measured.
    """
    gpu, dearest = plan.request.profile.gpus_per_pack > 0, plan.dearest
    cost, rates, spent = plan.cost_by(known), _rates(plan, address), 0.0
    if known:
        return cost, "law", spent
    if rates == "calibrated":
        say("taking a few steps of the adapter's training to see what they cost here")
        found = _few_steps(plan, dearest)
        if found is None:
            say("no step could be taken here, so that the cost is guessed")
            rates = "guessed"
        else:
            there = calibrated_cost(first_cost(dearest.training, gpu), found)
            spent = found.spent_gpu_seconds
            # The timed steps include no evaluations between steps.
            point = dearest.own_point
            looks = looks_share(
                len(plan.records.pairs),
                dearest.training.spec.recipe.batch_size,
                point.train_steps,
            )
            seconds = (1.0 + looks) * there.predict(point)
            cost = cost.at_rate(seconds, point.train_steps * cost.work_per_step(dearest.point))
    if rates == "guessed":
        least = LEAST_STEP_SECONDS_GPU if gpu else LEAST_STEP_SECONDS_CPU
        cost = _no_faster(cost, dearest.point, least)
    return cost, rates, spent


def _known(plan: SizePlan) -> tuple[tuple[Observation, ...], float]:
    """Return the runs of the stored law, or of the search already begun and its spend."""
    if plan.stored is not None:
        return plan.stored.observations, 0.0
    folder = plan.out / "law"
    if not folder.is_dir():
        return (), 0.0
    store = FileStore(folder)
    return store.observations(), spent_seconds(store)


def _rates(plan: SizePlan, address: str | None) -> Rates:
    """Return `calibrated` where steps can be timed on this machine, else `guessed`."""
    elsewhere = ray_address(address) != LOCAL
    sharded = plan.request.profile.workers_per_pack > 1
    # A dry run downloads no base model.
    absent = plan.search.source.folder is None
    missing = any(find_spec(name) is None for name in TRAIN_PACKAGES)
    return "guessed" if elsewhere or sharded or absent or missing else "calibrated"


def _few_steps(plan: SizePlan, option: PlaceOption) -> Calibration | None:
    """Time a few steps of the adapter at a place, on the device that the profile trains on.

    None where no step could be taken.
    """
    from pmlray.engine.calibrate_apart import time_steps_apart

    run = option.training.plan_run(option.own_point, METHOD, 0, 0, "law")
    profile = plan.request.profile
    # The cores of one worker.
    cores = profile.cpus_per_pack or os.cpu_count() or 1
    gpu = profile.gpus_per_pack > 0
    return time_steps_apart(option.training, Pack(0, (run,)), gpu, cores, ENOUGH_SECONDS)


def _no_faster(cost: CostModel, point: DesignPoint, least: float) -> CostModel:
    """Return the cost model with steps of at least `least` gpu_seconds at a point."""
    steps = point.train_steps
    tokens = steps * cost.work_per_step(point)
    return cost.at_rate(max(cost.predict(point), steps * least), tokens)
