"""Cost of runs in gpu_seconds: a guess from FLOPs, then the measured rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pmlray.types import DesignPoint

# Rough rates of one device until the first run is measured: a GPU at 40 % of an H100's dense bf16
# peak, and one CPU core by the dtype of the base (in bfloat16 3.3e11 were measured with AVX512-BF16
# and 2.9e11 with AMX).
GPU_FLOPS = 4e14
CPU_CORE_FLOPS: Mapping[str, float] = MappingProxyType({"float32": 8e10, "bfloat16": 3e11})
# Multi-record tasks: the target of one record (a phone number has ten tokens), until measured.
TARGET_TOKENS = 10


@dataclass(frozen=True, slots=True)
class PlaceWork:
    """Work of adapters at one of several placements.

    Args:
        share: work on a token without an adapter, over that of the placement to which the model's
            seconds_per_token belong.
        rank_share: work of one unit of rank, as a share of what is done without an adapter.
        first_layer: number of decoder layers through which no gradient passes. Their output is
            computed once, so runs are packed with those that share it.
    """

    share: float
    rank_share: float
    first_layer: int


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost of a run: gpu_seconds = seconds_per_token * steps * tokens in one step, and more by the
    adapter's own work.

    Args:
        seconds_per_token: gpu_seconds of one token in one optimiser step.
        prompt_tokens: tokens of a record beside its target.
        batch_records: records of a step; None for a single long record, whose step has all of it.
        decay_share: share of its steps that a shorter run takes alone when a longer one in its pack
            shares the others; None where runs share no steps.
        rank_share: work of one unit of rank, as a share of what is done without an adapter.
        measured: True where the rate was measured on runs.
        places: work of adapters by the name of their placement, where there are several.

    Example:
        >>> cost = CostModel(1e-4, prompt_tokens=8, batch_records=None)
        >>> cost.predict(DesignPoint(4, 64, 100))
        0.72
    """

    seconds_per_token: float
    prompt_tokens: int
    batch_records: int | None
    decay_share: float | None = None
    rank_share: float = 0.0
    measured: bool = False
    places: Mapping[str, PlaceWork] = field(default_factory=dict[str, PlaceWork])

    def tokens_per_step(self, point: DesignPoint) -> float:
        """Return the number of tokens through the trainable layers in one optimiser step."""
        if self.batch_records is None:
            return point.seq_len + self.prompt_tokens
        return self.rows_per_step(point) * (TARGET_TOKENS + self.prompt_tokens)

    def work_per_step(self, point: DesignPoint) -> float:
        """Return the work of one optimiser step, in tokens of a run without an adapter."""
        tokens = self.tokens_per_step(point)
        if point.placement is None:
            return tokens * (1.0 + self.rank_share * point.lora_rank)
        place = self.places[point.placement]
        return tokens * place.share * (1.0 + place.rank_share * point.lora_rank)

    def pack_kind(self, point: DesignPoint) -> int:
        """Return what runs of one pack have in common, by their placements; see `PlaceWork`."""
        return 0 if point.placement is None else self.places[point.placement].first_layer

    def rows_per_step(self, point: DesignPoint) -> int:
        """Return the number of records in one optimiser step."""
        if self.batch_records is None:
            return 1
        return min(self.batch_records, math.ceil(point.seq_len / TARGET_TOKENS))

    def predict(self, point: DesignPoint) -> float:
        """Return the gpu_seconds of one run at this point, by itself."""
        return self.seconds_per_token * point.train_steps * self.work_per_step(point)

    def added(self, point: DesignPoint, on_trunk: Sequence[int]) -> float:
        """Return the gpu_seconds that one more run adds to a pack.

        on_trunk: train_steps of the pack's runs that differ from it only in their budget. The
        longest run is the trunk, and every shorter one adds only its decay.
        """
        alone = self.seconds_per_token * self.work_per_step(point)
        if self.decay_share is None or not on_trunk:
            return alone * point.train_steps
        return alone * (self._steps([*on_trunk, point.train_steps]) - self._steps(on_trunk))

    def _steps(self, budgets: Sequence[int]) -> float:
        longest = max(budgets)
        return longest + (self.decay_share or 0.0) * (sum(budgets) - longest)

    def learn(self, runs: Iterable[tuple[DesignPoint, float, float]]) -> CostModel:
        """Return the model with the rate of measured runs (point, steps charged, gpu_seconds);
        unchanged without any."""
        seconds = tokens = 0.0
        for point, steps, gpu_seconds in runs:
            seconds += gpu_seconds
            tokens += steps * self.work_per_step(point)
        return self.at_rate(seconds, tokens)

    def at_rate(self, gpu_seconds: float, tokens: float) -> CostModel:
        """Return the model at the rate of `gpu_seconds` for `tokens` of work; unchanged without
        any."""
        if tokens == 0:
            return self
        return replace(self, seconds_per_token=gpu_seconds / tokens, measured=True)


def charged_steps(budgets: Sequence[int], decay_share: float | None) -> tuple[float, ...]:
    """Return the optimiser steps charged to each run of a family, in the order of `budgets`
    (train_steps).

    The runs of a family differ only in their budgets. They are one run up to the first one's decay,
    which begins `decay_share` of its steps before its end, and split every shared step evenly;
    where `decay_share` is None they share nothing.
    """
    if decay_share is None:
        return tuple(float(steps) for steps in budgets)
    ascending = sorted(range(len(budgets)), key=lambda i: budgets[i])
    charged, shared, joined = [0.0] * len(budgets), 0.0, 0
    for place, i in enumerate(ascending):
        steps = budgets[i]
        trunk = place == len(ascending) - 1
        leaves = steps if trunk else min(steps - round(decay_share * steps), steps - 1)
        shared += (leaves - joined) / (len(ascending) - place)
        joined = leaves
        charged[i] = shared + steps - leaves
    return tuple(charged)


def prior_cost(
    suffix_weights: int,
    head_weights: int,
    *,
    flops: float,
    prompt_tokens: int,
    batch_records: int | None,
    decay_share: float | None = None,
    rank_weights: int = 0,
) -> CostModel:
    """Return the cost before any measurement, from FLOPs: 2 forward and 2 backward a frozen weight,
    and 2 more backward a trained one.

    suffix_weights: weights of the layers above the adapter; head_weights: of the vocabulary head,
    which of short records only sees the targets; rank_weights: of the adapter, a unit of rank;
    flops: of the device, a second.
    """
    one_record = batch_records is None
    scored = 1.0 if one_record else TARGET_TOKENS / (TARGET_TOKENS + prompt_tokens)
    flops_per_token = 4.0 * (suffix_weights + scored * head_weights)
    rank_share = 6.0 * rank_weights / flops_per_token
    return CostModel(flops_per_token / flops, prompt_tokens, batch_records, decay_share, rank_share)


def prior_cost_of_places(priors: Mapping[str, tuple[CostModel, int]]) -> CostModel:
    """Return the cost before any measurement of runs at several placements.

    priors: of each placement by its name, the cost of its runs alone, and its first_layer (see
    `PlaceWork`). seconds_per_token belong to the first.
    """
    first = next(cost for cost, _ in priors.values())
    places = {
        name: PlaceWork(cost.seconds_per_token / first.seconds_per_token, cost.rank_share, layer)
        for name, (cost, layer) in priors.items()
    }
    return replace(first, rank_share=0.0, places=places)
