"""Plan of a search before it starts: cost model, candidates, first pack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from pmlray.config.adapters.placement import Placement
from pmlray.config.adapters.placement_facts import law_placements
from pmlray.config.bases.geometry import Geometry
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import SearchSpec
from pmlray.design import (
    OPTUNA_RULES,
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    DesignState,
    PendingSpend,
    choose_run,
    prior_cost,
    prior_cost_of_places,
)
from pmlray.design.cost import CPU_CORE_FLOPS, GPU_FLOPS
from pmlray.errors import DesignError
from pmlray.law import PlacementChoice
from pmlray.study.budget.allowance import budget_advice
from pmlray.study.run_names import pair_name
from pmlray.types import DesignPoint, PlannedRun

CHAT_PROMPT_TOKENS = 40
PLAIN_PROMPT_TOKENS = 16
# Bases of at least so many weights are planned for GPUs.
LARGE_WEIGHTS = 1e9


class CostTerms(TypedDict):
    """Terms of a CostModel other than its rate."""

    prompt_tokens: int
    batch_records: int | None
    decay_share: float | None


@dataclass(frozen=True, repr=False)
class SearchPlan:
    """Plan and cost of a search: every amount in gpu_seconds (on a CPU core-seconds).

    Rates are guesses until something is measured. `cells` are the design points of the grid with
    the cost of one run, each of which may be measured on `replicates` (sequence, seed) pairs;
    `first_pack` are the runs it begins with. `advice`: remedy for a budget that is too small, None
    where it is not. `places`: where adapters may sit, in words, by the placement's name; none for
    one place. `choices`: which placement stores a text for the fewest parameters, by the runs that
    are in the search's store. `counts`: n_records, the different ones, and n_duplicates of a
    records file; `duplicates`: a sentence on the latter, empty where there are none. `rates`: peak
    learning rates by placement.
    """

    search_id: str
    on_gpu: bool
    cells: tuple[tuple[DesignPoint, float], ...]
    replicates: int
    budget: float
    first_pack: tuple[tuple[PlannedRun, float], ...]
    advice: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    duplicates: str = ""
    places: Mapping[str, str] = field(default_factory=dict[str, str])
    choices: tuple[PlacementChoice, ...] = ()
    rates: Mapping[str | None, tuple[float, ...]] = field(
        default_factory=dict[str | None, tuple[float, ...]]
    )

    def __repr__(self) -> str:
        runs = f"{len(self.cells)} points x {self.replicates}"
        seconds = f"{self.full_grid:.0f} {self.device}-seconds, budget {self.budget:.0f}"
        return f"SearchPlan({self.search_id}, {runs}, about {seconds})"

    @property
    def device(self) -> str:
        """Unit of the seconds: GPU or CPU core."""
        return "GPU" if self.on_gpu else "CPU core"

    @property
    def full_grid(self) -> float:
        """Predicted cost of measuring everything, gpu_seconds."""
        return self.replicates * sum(seconds for _, seconds in self.cells)

    @property
    def _placed(self) -> bool:
        return any(point.placement is not None for point, _ in self.cells)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "search_id": self.search_id,
            **self.counts,
            "device": self.device,
            "candidates": [p.to_json() | {"gpu_seconds": seconds} for p, seconds in self.cells],
            "replicates": self.replicates,
            "full_grid_gpu_seconds": self.full_grid,
            "budget_gpu_seconds": self.budget,
            "advice": self.advice,
            "first_pack": [
                {"run_key": run.run_key}
                | run.point.to_json()
                | {
                    "sequence_id": run.sequence_id,
                    "seed": run.seed,
                    "learning_rate": self._rate(run),
                    "gpu_seconds": seconds,
                }
                for run, seconds in self.first_pack
            ],
            **({"placements": dict(self.places)} if self.places else {}),
            **({"choices": [c.to_json() for c in self.choices]} if self.choices else {}),
        }

    def _describe_places(self) -> list[str]:
        if not self.places:
            return []
        lines = ["placements:", *(f"  {name}: {told}" for name, told in self.places.items())]
        if not self.choices:
            lines.append(
                "which of them needs the fewest parameters at the targets is told once each has"
                " runs: by this command again, and by pmlray fit STORE"
            )
        return lines

    def _describe_rates(self) -> list[str]:
        """Say the peak learning rates: one, or with the placements that each is of."""
        by_rates: dict[str, list[str]] = {}
        for name, rates in self.rates.items():
            told = f"{rates[0]:g}" + (f" to {rates[-1]:g} by rank" if len(rates) > 1 else "")
            by_rates.setdefault(told, []).append(str(name))
        if len(by_rates) == 1:
            return [f"peak learning rate {told}" for told in by_rates]
        said = [f"{told} at {', '.join(names)}" for told, names in by_rates.items()]
        return [f"peak learning rate {'; '.join(said)}"] if said else []

    def _rate(self, run: PlannedRun) -> float | None:
        """Return a run's peak rate: its own, or the one of the recipe."""
        return run.learning_rate or next(iter(self.rates.get(run.point.placement, ())), None)

    def describe(self) -> str:
        """Describe the plan as text."""
        lines = [
            f"{self.search_id}: {len(self.cells)} design points x {self.replicates} replicates",
            f"all of them would cost about {self.full_grid:.0f} {self.device}-seconds;"
            f" the budget is {self.budget:.0f} (rates are guesses until measured)",
            *([self.advice] if self.advice else []),
            *([self.duplicates] if self.duplicates else []),
            *self._describe_places(),
            *self._describe_rates(),
            "first runs, by placement in one pack or several:" if self._placed else "first pack:",
        ]
        for run, seconds in self.first_pack:
            lines.append(f"  {pair_name(run)}: about {seconds:.0f} gpu_seconds")
        return "\n".join(lines)


def _sites(search: PreparedSearch, point: DesignPoint) -> str:
    """Return where a point's adapter sits, its ranks and its parameters, in words."""
    ranks = ", ".join(map(str, search.spec.space.ranks_of(point.placement)))
    where, per_rank = search.spec.places[point.placement], search.params_per_rank_of(point)
    return f"{where.describe()}, ranks {ranks}, {per_rank} parameters a rank"


def plan_search(search: PreparedSearch, gpu: bool) -> SearchPlan:
    """Plan a search; DesignError when its budget is too small for its first pack.

    gpu: plan for GPUs; without it, for the CPU where the base is small enough for one.
    """
    on_gpu = gpu or is_large(search.source.geometry)
    cost = first_cost(search, on_gpu)
    return SearchPlan(
        search.spec.search_id,
        on_gpu,
        tuple((cell, cost.predict(cell)) for cell in search.spec.space.points()),
        len(search.spec.replicates()),
        search.spec.budget.law_seconds,
        tuple((run, cost.predict(run.point)) for run in first_pack(search, cost)),
        budget_advice(search.spec, cost),
        search.counts(),
        search.duplicates,
        {p.placement: _sites(search, p) for p in search.spec.space.corners() if p.placement},
        rates=_peak_rates(search),
    )


def _peak_rates(search: PreparedSearch) -> dict[str | None, tuple[float, ...]]:
    """Return the peak learning rates of each placement's ranks, each once, ascending."""
    found: dict[str | None, set[float]] = {}
    for point in search.spec.space.points():
        found.setdefault(point.placement, set()).add(search.peak_rate_at(point))
    return {name: tuple(sorted(rates)) for name, rates in found.items()}


def is_large(geometry: Geometry) -> bool:
    """Return whether a base is planned for GPUs."""
    return geometry.n_layers * geometry.layer_weights >= LARGE_WEIGHTS


def design_space(search: PreparedSearch) -> DesignSpace:
    """Return the grid and its replicates."""
    cells, replicates = search.spec.space.points(), search.spec.replicates()
    return DesignSpace(cells, replicates, law_placements(search))


def design_settings(search: PreparedSearch) -> DesignSettings:
    """Return the settings of the spec for choosing points."""
    design = search.spec.design
    return DesignSettings(
        design.n_initial,
        design.validation_share,
        search.spec.target_points(),
        design.acquisition,
        design.seed,
    )


def first_cost(search: PreparedSearch, gpu: bool) -> CostModel:
    """Return the cost model before anything is measured."""
    flops = GPU_FLOPS if gpu else CPU_CORE_FLOPS[search.spec.model.base_dtype]
    return cost_from_sizes(search.spec, search.source.geometry, search.placements, flops)


def cost_from_sizes(
    spec: SearchSpec, geometry: Geometry, placements: Mapping[str | None, Placement], flops: float
) -> CostModel:
    """Return the cost of a search on a base of these sizes.

    placements: of the search in it, by name; flops: of the device, a second.
    """
    priors = dict[str, tuple[CostModel, int]]()
    for name, placement in placements.items():
        first_layer = geometry.first_trained_layer(placement)
        cost = prior_cost(
            (geometry.n_layers - first_layer) * geometry.layer_weights,
            geometry.vocab * geometry.hidden,
            flops=flops,
            # That of a kept site is thousandths of a step, and left out as it always was.
            rank_weights=0
            if placement.kept_site is not None
            else placement.params_per_rank(geometry.adaptable),
            **cost_terms(spec),
        )
        if name is None:
            return cost
        priors[name] = (cost, first_layer)
    return prior_cost_of_places(priors)


def cost_terms(spec: SearchSpec) -> CostTerms:
    """Return the terms that relate a run's cost to its point."""
    chat = spec.task.prompt_format == "chat"
    return {
        "prompt_tokens": CHAT_PROMPT_TOKENS if chat else PLAIN_PROMPT_TOKENS,
        "batch_records": None if spec.task.kind == "long_context" else spec.recipe.batch_size,
        "decay_share": spec.recipe.decay_share if spec.recipe.shares_trunks else None,
    }


def first_pack(search: PreparedSearch, cost: CostModel) -> tuple[PlannedRun, ...]:
    """Return the runs of the first pack; DesignError with the needed budget when it is too small.

    Optuna's own samplers begin at random: for them it is a random pack of that size, not the one
    that they will draw.
    """
    spec, space, settings = search.spec, design_space(search), design_settings(search)
    if settings.acquisition in OPTUNA_RULES:
        settings = replace(settings, acquisition="random")
    budget = spec.budget.law_seconds
    chosen: list[ChosenRun] = []
    for _ in range(settings.n_initial):
        pending = PendingSpend(cost, chosen).gpu_seconds
        known = DesignState(
            *(tuple(chosen), (), math.inf, cost, budget - pending),
            pack=tuple(chosen),
            placements=space.placements,
        )
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
