"""Forecast of the cost of `pmlray size`, by a few real steps where this machine trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from pmlray.api.adapter_memory import check_memory
from pmlray.api.machine import TRAIN_PACKAGES
from pmlray.api.sizing.plan import SizePlan
from pmlray.backends.store.file_store import FileStore
from pmlray.design import CostModel
from pmlray.live_packs import Calibration
from pmlray.study.budget.allowance import calibrated_cost
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.cost import Rates, SizeCost, law_budget, looks_share, spent_seconds
from pmlray.study.sizing.request import METHOD, UNSETTLED
from pmlray.types import Observation, Pack

# Least device-seconds of a step: a small model's is bound by overhead, not by arithmetic.
LEAST_STEP_SECONDS_GPU, LEAST_STEP_SECONDS_CPU = 0.02, 0.005
# Device-seconds of timed steps: on a busy machine a step's CPU seconds vary by a sixth.
ENOUGH_SECONDS = 10.0


def forecast(plan: SizePlan, address: str | None, say: Callable[[str], None]) -> SizeCost:
    """Return the predicted cost of a plan.

    The rate is that of the runs of a stored law or of a search already begun, else that of a few
    timed steps; on a cluster, or without the train extra, it is guessed. say: called before the
    timed steps, which take seconds. ModelError where this machine's memory holds no such adapter.
    """
    check_memory(plan.training, [plan.largest], plan.request.profile, address)
    gpu, spent = plan.request.profile.gpus_per_pack > 0, 0.0
    cost, rates = first_cost(plan.training, gpu), _rates(plan, address)
    known, of_law = _known(plan)
    if known:
        cost, rates = plan.cost_by(known), "law"
    elif rates == "calibrated":
        say("taking a few steps of the adapter's training to see what they cost here")
        found = _few_steps(plan)
        if found is None:
            say("no step could be taken here, so that the cost is guessed")
            rates = "guessed"
        else:
            cost, spent = calibrated_cost(cost, found), found.spent_gpu_seconds
            # The timed steps include no evaluations between steps.
            looks = looks_share(
                len(plan.records.pairs),
                plan.training.spec.recipe.batch_size,
                plan.largest.train_steps,
            )
            cost = replace(cost, seconds_per_token=cost.seconds_per_token * (1.0 + looks))
    if rates == "guessed":
        cost = _no_faster(cost, plan, LEAST_STEP_SECONDS_GPU if gpu else LEAST_STEP_SECONDS_CPU)
    search: float | None = None
    if plan.stored is None:
        settled = plan.search.spec.budget != UNSETTLED
        budget = plan.search.spec.budget if settled else law_budget(cost, plan.largest)
        search = max(0.0, budget.law_seconds - of_law)
    return SizeCost(search, cost.predict(plan.largest), rates, spent)


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
    elsewhere = address or os.environ.get("RAY_ADDRESS")
    sharded = plan.request.profile.workers_per_pack > 1
    # A dry run downloads no base model.
    absent = plan.training.source.folder is None
    missing = any(find_spec(name) is None for name in TRAIN_PACKAGES)
    return "guessed" if elsewhere or sharded or absent or missing else "calibrated"


def _few_steps(plan: SizePlan) -> Calibration | None:
    """Time a few steps of the adapter on the device that the profile trains on.

    None where no step could be taken.
    """
    from pmlray.engine.calibrate_apart import time_steps_apart

    run = plan.training.plan_run(plan.largest, METHOD, 0, 0, "law")
    profile = plan.request.profile
    # The cores of one worker.
    cores = profile.cpus_per_pack or os.cpu_count() or 1
    gpu = profile.gpus_per_pack > 0
    return time_steps_apart(plan.training, Pack(0, (run,)), gpu, cores, ENOUGH_SECONDS)


def _no_faster(cost: CostModel, plan: SizePlan, least: float) -> CostModel:
    """Return the cost model with steps of at least `least` gpu_seconds."""
    steps = plan.largest.train_steps
    tokens = steps * cost.work_per_step(plan.largest)
    return cost.at_rate(max(cost.predict(plan.largest), steps * least), tokens)
