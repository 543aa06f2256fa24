"""What a search would do, before it does anything: cost model, candidates, first pack."""

from __future__ import annotations

import math
from dataclasses import replace

from pmlray.config.prepared import PreparedSearch
from pmlray.design import (
    OPTUNA_RULES,
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    Knowledge,
    choose_run,
    pending_seconds,
    prior_cost,
)
from pmlray.design.cost import CPU_CORE_FLOPS, GPU_FLOPS
from pmlray.errors import DesignError
from pmlray.types import PlannedRun

CHAT_PROMPT_TOKENS = 40
PLAIN_PROMPT_TOKENS = 16


def design_space(search: PreparedSearch) -> DesignSpace:
    """The grid and its replicates."""
    return DesignSpace(search.spec.space.points(), search.spec.replicates())


def design_settings(search: PreparedSearch) -> DesignSettings:
    """How the spec wants points to be chosen."""
    design = search.spec.design
    return DesignSettings(
        design.n_initial,
        design.validation_share,
        search.spec.target_points(),
        design.acquisition,
        design.seed,
    )


def first_cost(search: PreparedSearch, gpu: bool) -> CostModel:
    """The cost model before anything was measured."""
    spec, geometry = search.spec, search.source.geometry
    chat = spec.task.prompt_format == "chat"
    return prior_cost(
        (geometry.n_layers - 1 - spec.probe.layer) * geometry.layer_weights,
        geometry.vocab * geometry.hidden,
        flops=GPU_FLOPS if gpu else CPU_CORE_FLOPS[spec.model.dtype],
        prompt_tokens=CHAT_PROMPT_TOKENS if chat else PLAIN_PROMPT_TOKENS,
        batch_records=None if spec.task.kind == "long_context" else spec.recipe.batch_size,
        decay_share=spec.recipe.decay_share if spec.recipe.shares_trunks else None,
    )


def first_pack(search: PreparedSearch, cost: CostModel) -> tuple[PlannedRun, ...]:
    """The runs of the first pack; DesignError with the budget needed when it is too small.

    Optuna's own samplers begin at random: for them it is such a pack, not the one that they draw.
    """
    spec, space, settings = search.spec, design_space(search), design_settings(search)
    if settings.acquisition in OPTUNA_RULES:
        settings = replace(settings, acquisition="random")
    budget = spec.budget.law_seconds
    chosen: list[ChosenRun] = []
    for _ in range(settings.n_initial):
        pending = pending_seconds(cost, chosen)
        known = Knowledge(tuple(chosen), (), math.inf, cost, budget - pending, pack=tuple(chosen))
        choice = choose_run(space, settings, known)
        if choice is None:
            cheapest = min(cost.predict(cell) for cell in space.open_cells(chosen))
            raise DesignError(
                f"the budget of {budget:.0f} gpu_seconds is too small for the first pack of"
                f" {settings.n_initial} runs: {len(chosen)} fit; it needs at least"
                f" {pending + cheapest * (settings.n_initial - len(chosen)):.0f} gpu_seconds"
                " (budget.gpu_seconds), or a smaller design.n_initial"
            )
        chosen.append(ChosenRun(*choice, done=False))
    return tuple(search.plan_run(run.point, "sft", *run.replicate, "law") for run in chosen)
