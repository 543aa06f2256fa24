"""Comparisons of training methods: the validated form of their YAML files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, ClassVar, get_args

from pydantic import Field, field_validator, model_validator

from pmlray.config.adapters.adapter_spec import Adapter, Probe, one_place
from pmlray.config.bases.model_spec import Model, as_asked
from pmlray.config.memft_options import MEMFT_METHODS, Memft, MemftOptions
from pmlray.config.recipe import FORMER_RATE, Recipe, with_former_rate
from pmlray.config.search_spec import (
    Budget,
    Design,
    Evaluate,
    SearchSpec,
    SequenceId,
    Space,
    Task,
)
from pmlray.config.spec_base import Count, Part, PositiveInt, Seed
from pmlray.types import DesignPoint, Method, Schedule

# A comparison makes the runs that it names, whatever they cost.
NO_LIMIT = 1e12
# Default of the tuning texts of comparisons begun before there were three.
FORMER_TUNING_TEXTS = (100, 101)


class ComparePoint(Part):
    """A point where methods are compared: adapter rank, supervised tokens, optimiser steps.

    `schedule`: of the learning rate, where it is not the recipe's, so that one comparison has the
    same point under several.
    """

    lora_rank: PositiveInt
    seq_len: PositiveInt
    train_steps: PositiveInt
    schedule: Schedule | None = None


class Tuning(Part):
    """Peak learning rates tried with every method, on texts that the comparison does not use.

    At each point, each method takes the rate with its best mean exact recall there; token recall,
    then the loss, break ties. While any method's best rate at a point is the lowest or the highest
    tried there, all methods also try half of the lowest or twice the highest, up to `widenings`
    times at each end. A single rate is taken as it is, without tuning.
    """

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    widenings: Count = 4
    sequences: tuple[SequenceId, ...] = Field(default=(100, 101, 102), min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)


class CompareSpec(Part):
    """A whole comparison: every method at every point, text and seed, `sft` among them.

    `pack_size`: number of runs that train together; None: whole texts, as many as the device is
    known to hold, distributed over all devices. `evaluate.prose` measures each method's effect on
    the base. Load it with `pmlray.config.prepared_search.prepare_comparison`, whose errors name
    lines.

    Example:
        >>> Comparison.load("searches/comparisons/smoke.yaml").spec.methods
        ('memft_ot', 'memft_rd')
    """

    INSTEAD: ClassVar[Mapping[str, str]] = {
        "space": "a comparison has points in place of a space, all at the one place of its adapters"
        " that adapter or probe says: space.placement is of searches"
    }

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)
    task: Task
    model: Model
    probe: Probe | None = None
    adapter: Adapter | None = None
    recipe: Recipe = Field(default=Recipe(), validate_default=True)
    points: tuple[ComparePoint, ...] = Field(min_length=1)
    methods: tuple[MEMFT_METHODS, ...] = Field(default=get_args(MEMFT_METHODS), min_length=1)
    memft: MemftOptions = MemftOptions()
    tuning: Tuning
    sequences: tuple[SequenceId, ...] = Field(default=(0, 1, 2, 3, 4), min_length=2)
    seeds: tuple[Seed, ...] = Field(default=(0, 1), min_length=1)
    pack_size: PositiveInt | None = None
    evaluate: Evaluate = Evaluate(generate_max_tokens=0, prose=True)

    @field_validator("recipe")
    @classmethod
    def _tuned_rate(cls, recipe: Recipe) -> Recipe:
        """Say the former default of the rate, which tuning replaces: comparisons keep their ids."""
        if recipe.learning_rate != "auto":
            return recipe
        return recipe.model_copy(update={"learning_rate": FORMER_RATE})

    @model_validator(mode="after")
    def _fair(self) -> CompareSpec:
        one_place(self.probe, self.adapter, "a comparison")
        if shared := sorted(set(self.tuning.sequences) & set(self.sequences)):
            raise ValueError(
                f"tuning.sequences and sequences share {shared}: a rate must not be chosen on a"
                " text that is compared on"
            )
        if len(set(self.points)) < len(self.points):
            raise ValueError("points name the same point twice")
        # The rules of a search apply to a comparison too.
        self.search_spec()
        return self

    @property
    def compare_id(self) -> str:
        """Name and a hash of all fields that differ from the defaults."""
        chosen = as_asked(self.model_dump(mode="json", exclude_defaults=True))
        chosen = with_former_rate(chosen, self.recipe)
        chosen["task"] = self.task.chosen()
        chosen["tuning"].pop("sequences", None)
        if self.tuning.sequences != FORMER_TUNING_TEXTS:
            chosen["tuning"]["sequences"] = list(self.tuning.sequences)
        canonical = json.dumps(chosen, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    @property
    def n_tuning_runs(self) -> int:
        """Number of runs that try the file's rates, without those of wider ones; 0 where there is a
        single rate."""
        tuning = self.tuning
        if len(tuning.learning_rates) == 1:
            return 0
        tries = len(tuning.learning_rates) * len(tuning.sequences) * len(tuning.seeds)
        return len(self.points) * len(self.all_methods()) * tries

    @property
    def n_compared_runs(self) -> int:
        """Number of runs that the methods are compared by."""
        texts = len(self.sequences) * len(self.seeds)
        return len(self.points) * len(self.all_methods()) * texts

    @property
    def n_runs(self) -> int:
        """Number of all runs of the comparison, without those of rates beyond the file's."""
        return self.n_tuning_runs + self.n_compared_runs

    def all_methods(self) -> tuple[Method, ...]:
        """Return `sft`, the baseline, and then the other methods."""
        return ("sft", *self.methods)

    def design_points(self) -> tuple[DesignPoint, ...]:
        """Return the points in the order of the file."""
        return tuple(
            DesignPoint(p.lora_rank, p.seq_len, p.train_steps, schedule=p.schedule)
            for p in self.points
        )

    def search_spec(self) -> SearchSpec:
        """Return the search that these runs belong to, by which the engine trains them."""
        points = self.design_points()
        memft = Memft.model_validate({**self.memft.model_dump(), "methods": self.methods})
        return SearchSpec(
            name=self.name,
            task=self.task,
            model=self.model,
            probe=self.probe,
            adapter=self.adapter,
            space=Space(
                lora_rank=tuple(sorted({p.lora_rank for p in points})),
                seq_len=tuple(sorted({p.seq_len for p in points})),
                train_steps=tuple(sorted({p.train_steps for p in points})),
            ),
            recipe=self.recipe,
            design=Design(n_initial=1),
            budget=Budget(gpu_seconds=NO_LIMIT, memft_gpu_seconds=NO_LIMIT),
            memft=memft,
            evaluate=self.evaluate,
            sequences=tuple(sorted({*self.sequences, *self.tuning.sequences})),
            seeds=tuple(sorted({*self.seeds, *self.tuning.seeds})),
        )
