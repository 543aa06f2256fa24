"""Searches: the validated form of `searches/*.yaml` files.

`SearchSpec` is frozen and refuses unknown keys. `search_id` hashes the canonical form, so the same
search always has the same store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from pmlray.config.adapters.adapter_spec import Adapter, AdapterPlace, one_place
from pmlray.config.adapters.adapter_spec import Probe as Probe
from pmlray.config.bases.model_spec import Model, as_asked
from pmlray.config.law_options import LawOptions
from pmlray.config.memft_options import Memft, MemftOptions
from pmlray.config.recipe import Recipe, with_former_rate
from pmlray.config.space_spec import MOST_POINTS
from pmlray.config.space_spec import Space as Space
from pmlray.config.space_spec import Targets as Targets
from pmlray.config.spec_base import Count, Part, PositiveInt, Seed
from pmlray.config.task_spec import Task as Task
from pmlray.design import Acquisition
from pmlray.errors import SpecError
from pmlray.memory import FRESH_SEQUENCE_ID
from pmlray.types import DesignPoint, MemftRules

SequenceId = Annotated[int, Field(ge=0, lt=FRESH_SEQUENCE_ID)]
FORMER_PACK_SIZE = 4


class Design(Part):
    """Choice of points: a log-spaced start, then packs of `pack_size` by `acquisition`.

    `pack_size` None: as many runs as pay off on the device, judging by the packs so far.
    `v_optimal` reduces the variance at the targets most per gpu_second, over all forms. The
    alternatives: `v_optimal_single` (under the best form alone), `d_optimal` (the best form's
    parameters), `random`, `sobol`, `lhs` (Latin hypercubes), `cheapest_first`, `full_grid`, and
    Optuna's `tpe` and `gp`, which look for a large delta_loss. `validation_share` of the spend goes
    to space-filling points. `seed` is used by the rules that draw at random.
    """

    acquisition: Acquisition = "v_optimal"
    seed: Seed = 0
    n_initial: PositiveInt = 6
    pack_size: PositiveInt | None = None
    validation_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    targets: Targets | None = None


class Budget(Part):
    """Device-seconds that may be spent in training loops (on a CPU: CPU seconds of the process)."""

    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    gpu_seconds: Annotated[float, Field(gt=0)] | None = None
    memft_gpu_hours: Annotated[float, Field(ge=0)] | None = None
    memft_gpu_seconds: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Budget:
        if (self.gpu_hours is None) == (self.gpu_seconds is None):
            raise ValueError("budget needs exactly one of gpu_seconds and gpu_hours")
        if self.memft_gpu_hours is not None and self.memft_gpu_seconds is not None:
            raise ValueError("budget takes one of memft_gpu_seconds and memft_gpu_hours, not both")
        return self

    @property
    def law_seconds(self) -> float:
        """Budget of the law phase, gpu_seconds."""
        return self.gpu_seconds if self.gpu_seconds is not None else 3600.0 * (self.gpu_hours or 0)

    @property
    def memft_seconds(self) -> float:
        """Budget of the MemFT phase, gpu_seconds; 0 when none was given."""
        if self.memft_gpu_seconds is not None:
            return self.memft_gpu_seconds
        return 3600.0 * (self.memft_gpu_hours or 0.0)


class Stop(Part):
    """Stopping rule: the search ends once the half-width of the law's 90 % interval is at most this
    share of the prediction at every target."""

    relative_interval: Annotated[float, Field(gt=0)] | None = None


class Evaluate(Part):
    """Measurements of a trained adapter beside its loss and recall.

    `generate_max_tokens`: most tokens of greedy decoding for the runs that recall everything (0:
    none). `control_tokens`: tokens of fresh text of the same distribution on which every adapter is
    scored (0: none); a records task has no fresh text. `prose`: every adapter is scored on a
    passage of plain English, which measures its effect on the base.
    """

    generate_max_tokens: Count = 256
    control_tokens: Count = 128
    prose: bool = False


class SearchSpec(Part):
    """A whole search. Build it with `pmlray.config.load_search`, whose errors name lines.

    Its adapters sit at one place, which `adapter` or `probe` says, or at those of
    `space.placement`.

    Example:
        >>> spec = Search.load("searches/smoke.yaml").spec
        >>> spec.search_id, spec.space.lora_rank
        ('smoke-310956a6', (1, 2, 4, 8))
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)
    task: Task
    model: Model
    probe: Probe | None = None
    adapter: Adapter | None = None
    space: Space
    recipe: Recipe = Recipe()
    law: LawOptions = LawOptions()
    design: Design = Design()
    budget: Budget
    stop: Stop = Stop()
    memft: Memft | None = None
    evaluate: Evaluate = Evaluate()
    sequences: tuple[SequenceId, ...] = Field(default=(0, 1), min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSpec:
        self._check_places()
        if self.memft is not None and self.budget.memft_seconds <= 0:
            raise ValueError("budget.memft_gpu_seconds (or memft_gpu_hours) is needed with memft")
        replicates = len(self.sequences) * len(self.seeds)
        if replicates > MOST_POINTS:
            raise ValueError(
                f"sequences and seeds make {replicates} replicates; at most {MOST_POINTS} can be"
            )
        cells = self.space.n_points * replicates
        if self.design.n_initial > cells:
            raise ValueError(
                f"design.n_initial is {self.design.n_initial}, but the space has {cells} runs"
            )
        if self.design.n_initial < (named := len(self.space.placements)):
            raise ValueError(
                f"design.n_initial is {self.design.n_initial}, but space.placement has {named}"
                f" placements, each of which is measured before a law chooses: give it {named}"
            )
        return self

    def _check_places(self) -> None:
        """Raise ValueError unless the spec says in one way where adapters sit."""
        named, targets = self.space.placement, self.design.targets
        if named is None:
            one_place(self.probe, self.adapter, "a search")
        elif self.probe is not None or self.adapter is not None:
            given = "adapter" if self.probe is None else "probe"
            raise ValueError(
                f"a search has {given} for one place of its adapters, or space.placement for"
                " several: leave one of them out"
            )
        for name in (targets.placement or ()) if targets is not None else ():
            if name not in (named or {}):
                raise ValueError(
                    f"design.targets.placement names {name}, but space.placement has"
                    f" {', '.join(named) if named else 'no placements'}"
                )

    @property
    def places(self) -> Mapping[str | None, AdapterPlace]:
        """Where adapters sit by the placement's name: None for that of `probe` or `adapter`."""
        if self.space.placement is not None:
            return {**self.space.placement}
        return {None: one_place(self.probe, self.adapter, "a search")}

    @property
    def place(self) -> AdapterPlace:
        """Where the adapters of a search with one place sit; SpecError where it has several."""
        if self.space.placement is not None:
            raise SpecError(
                f"{self.search_id} has several placements, and this needs a search with one: give"
                " it adapter in place of space.placement"
            )
        return one_place(self.probe, self.adapter, "a search")

    def describe_places(self) -> str:
        """Return where the adapters sit, in words."""
        return "; ".join(
            place.describe() if name is None else f"{name}: {place.describe()}"
            for name, place in self.places.items()
        )

    @property
    def search_id(self) -> str:
        """Name and a hash of all fields that differ from the defaults.

        A new option at its default does not change the ids of earlier searches. Neither does
        `dtype: auto`, on any machine, or the commit of a hub id without a revision: searches begun
        when bfloat16 was the default keep their ids, and those begun when the rate had a default.
        """
        chosen = as_asked(self.model_dump(mode="json", exclude_defaults=True))
        chosen = with_former_rate(chosen, self.recipe)
        chosen["task"] = self.task.chosen()
        # Default of searches begun before the pack size depended on the device.
        if self.design.pack_size == FORMER_PACK_SIZE:
            del chosen["design"]["pack_size"]
            if not chosen["design"]:
                del chosen["design"]
        canonical = json.dumps(chosen, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def memft_rules(self) -> MemftRules:
        """Return the rules of MemFT's methods; the default ones where none are given."""
        return (self.memft or MemftOptions()).rules(self.task.kind)

    def target_points(self) -> tuple[DesignPoint, ...]:
        """Return the points where the law must be known: `design.targets`, else the space's largest
        cell of each placement."""
        targets = self.design.targets
        return self.space.corners() if targets is None else targets.points(self.space)

    def replicates(self) -> tuple[tuple[int, int], ...]:
        """Return every (sequence_id, seed), sequences varying fastest: independent texts first."""
        return tuple((sequence, seed) for seed in self.seeds for sequence in self.sequences)
