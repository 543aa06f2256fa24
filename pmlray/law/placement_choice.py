"""Which placement stores a text for least, and how sure that order is.

Shapes: n samples, K placements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.placements import PlacedPoint, Placement
from pmlray.law.sizing import LARGEST, SURE_LOSS, Estimate, order_statistics
from pmlray.law.target_predictions import TargetPrediction
from pmlray.law.validation.judgement import is_far
from pmlray.types import DesignPoint

# Costs (n,) of adapters of whole ranks (n,) at a placement; inf where a rank cannot be had there.
Cost = Callable[[Placement, FloatArray], FloatArray]
# Order of placements: by trainable parameters, gpu_seconds of a run, or loss added on prose.
By = Literal["parameters", "gpu_seconds", "prose"]
# The costs at a length and steps, of a loss reduction in nats per token.
CostAt = Callable[[float, float, float], Cost]


@dataclass(frozen=True, slots=True)
class PlacementNeed:
    """Whole rank that a loss reduction needs at a placement, what it costs, and the probability
    that no other of the placements compared costs less.

    `far`: that rank is beyond four times those measured there, or the length or steps beyond
    four times those measured, so that nothing tells what it stores but the trend of the law.
    """

    placement: Placement
    lora_rank: Estimate
    cost: Estimate
    p_best: float
    far: bool = False


@dataclass(frozen=True, slots=True)
class PlacementChoice:
    """Placements by rising cost of a loss reduction of delta_loss nats per token, or in an order
    that was asked about.

    Of two that follow each other the first is at least as likely to cost less as not.

    `p_first`: probability that the first costs less than the runner-up; `p_order`: that the whole
    order is so. Equal costs count as half, and as being in order. Both, and `p_best` of the needs,
    are of the samples in which any placement reaches it: the others tell nothing of the order.
    `by`: what the costs are.
    """

    seq_len: float
    train_steps: float
    delta_loss: float
    needs: tuple[PlacementNeed, ...]
    p_first: float
    p_order: float
    by: By = "parameters"

    @property
    def reachable(self) -> bool:
        """Whether any placement is likely to have a rank that is enough."""
        return math.isfinite(self.needs[0].cost.value)

    @property
    def far(self) -> bool:
        """Whether the first or the runner-up needs a rank far beyond those measured there."""
        return any(need.far for need in self.needs[:2])

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; inf becomes null."""

        def plain(found: Estimate) -> dict[str, float | None]:
            edges = {"value": found.value, "low": found.low, "high": found.high}
            return {name: x if math.isfinite(x) else None for name, x in edges.items()}

        return {
            "by": self.by,
            "seq_len": self.seq_len,
            "train_steps": self.train_steps,
            "delta_loss": self.delta_loss,
            "placements": [
                {
                    "placement": need.placement.name,
                    "lora_rank": plain(need.lora_rank),
                    "cost": plain(need.cost),
                    "p_best": need.p_best,
                    "far": need.far,
                }
                for need in self.needs
            ],
            "p_first": self.p_first,
            "p_order": self.p_order,
            "far": self.far,
        }


def adapter_params(placement: Placement, lora_rank: FloatArray) -> FloatArray:
    """Return the trainable parameters of adapters of these ranks."""
    return lora_rank * placement.params_per_rank


def params_at(seq_len: float, train_steps: float, delta_loss: float) -> Cost:
    """Return the cost of adapters by their trainable parameters, the same everywhere."""
    return adapter_params


def choose_placement(
    samples: AveragedSamples,
    placements: Sequence[Placement],
    seq_len: float,
    train_steps: float,
    delta_loss: float,
    *,
    cost: Cost = adapter_params,
    by: By = "parameters",
    level: float = 0.9,
    order: Sequence[Placement] | None = None,
    measured: LawData | None = None,
) -> PlacementChoice:
    """Order placements by what a loss reduction costs there.

    Args:
        samples: posterior samples of a law whose points say their placements.
        placements: at least two, each with points or not.
        seq_len: supervised tokens of the text.
        train_steps: optimiser steps, 0 where the law has no budget term.
        delta_loss: loss reduction wanted, nats per token.
        cost: of an adapter; by default its trainable parameters. Sample i of one placement is
            compared with sample i of the others.
        by: what the cost is, for whoever reads the choice.
        level: of the intervals.
        order: all of the placements, in the order whose probability is asked for; by default that
            of rising median cost, with neighbours exchanged where the second is likelier to cost
            less.
        measured: the law's points, by which a needed rank is far or not; without, none is.

    Raises:
        DataError: fewer than two placements, or a delta_loss that is not a finite number.

    Example:
        >>> law = fit_law(data)
        >>> choice = choose_placement(law.average_samples, data.placements, 512, 200, 6.0)
        >>> choice.needs[0].placement.name, choice.p_first
    """
    if len(placements) < 2 or not math.isfinite(delta_loss):
        raise DataError(
            f"to choose among {len(placements)} placements for a delta_loss of {delta_loss}: give"
            " two placements or more, and a finite number of nats per token"
        )
    rank_Kn = np.stack(
        [needed_ranks(samples.at(p), seq_len, train_steps, delta_loss) for p in placements]
    )
    cost_Kn = np.stack([_costs(cost, p, r) for p, r in zip(placements, rank_Kn, strict=True)])
    reached_n = np.isfinite(cost_Kn).any(axis=0)
    compared_Kn = cost_Kn[:, reached_n] if reached_n.any() else cost_Kn
    cheapest_Kn = compared_Kn == compared_Kn.min(axis=0)
    best_K = (cheapest_Kn / cheapest_Kn.sum(axis=0)).mean(axis=1)
    middle_K = [order_statistics(cost_n, level).value for cost_n in cost_Kn]
    ranked = sorted(range(len(placements)), key=lambda k: (middle_K[k], -best_K[k]))
    if order is not None:
        ranked = [placements.index(placement) for placement in order]
    else:
        ranked = _likelier_first(ranked, compared_Kn)
    rank_K = [order_statistics(rank_n, level) for rank_n in rank_Kn]
    needs = tuple(
        PlacementNeed(
            placements[k],
            rank_K[k],
            order_statistics(cost_Kn[k], level),
            float(best_K[k]),
            measured is not None
            and _is_far(measured, placements[k], rank_K[k].value, seq_len, train_steps),
        )
        for k in ranked
    )
    ordered_Kn = compared_Kn[ranked]
    p_first = _p_less(*ordered_Kn[:2])
    p_order = float(np.mean(np.all(ordered_Kn[:-1] <= ordered_Kn[1:], axis=0)))
    return PlacementChoice(seq_len, train_steps, delta_loss, needs, p_first, p_order, by)


def choices_at(
    data: LawData,
    samples: AveragedSamples,
    targets: Sequence[TargetPrediction],
    delta_loss: float | None,
    by: By = "parameters",
    cost_at: CostAt = params_at,
) -> tuple[PlacementChoice, ...]:
    """Return the choice among the points' placements at each length and steps of the targets, or
    without any at the largest measured.

    delta_loss: nats per token; by default what brings the mean loss down to ln 2. cost_at: the cost
    of adapters at a length and steps, by default their trainable parameters. Empty where the points
    have one placement, or where the base loss that the default needs is not known.
    """
    if not data.several_placements or (delta_loss is None and not samples.base.known):
        return ()
    found: list[PlacementChoice] = []
    for seq_len, steps in _lengths_and_steps(data, targets):
        wanted = delta_loss
        if wanted is None:
            wanted = float(samples.base.at(seq_len)) - SURE_LOSS
        at = (seq_len, steps, wanted)
        found.append(
            choose_placement(
                *(samples, data.placements, *at), cost=cost_at(*at), by=by, measured=data
            )
        )
    return tuple(found)


def _lengths_and_steps(
    data: LawData, targets: Sequence[TargetPrediction]
) -> list[tuple[float, float]]:
    if not targets:
        return [(int(data.seq_len.max()), int(data.train_steps.max()))]
    return list(dict.fromkeys((t.point.seq_len, t.point.train_steps) for t in targets))


def needed_ranks(
    samples: AveragedSamples, seq_len: float, train_steps: float, delta_loss: float
) -> FloatArray:
    """Return the whole rank of the samples' placement that reaches delta_loss under each sample,
    (n,); inf where none does."""
    if delta_loss > float(samples.base.at(seq_len)):
        return np.full(samples.sigma.size, np.inf)
    laws = samples.laws_at(seq_len)
    exact = np.array([law.invert_rank(seq_len, train_steps, delta_loss) for law in laws])
    # A rank is not rounded up for a share of it that no run could tell.
    whole = np.ceil(np.maximum(exact, 1.0) - 1e-6)
    return np.where(whole > LARGEST["lora_rank"], np.inf, whole)


def _p_less(first_n: FloatArray, second_n: FloatArray) -> float:
    """Return the probability that the first costs less; equal costs count as half."""
    return float(np.mean((first_n < second_n) + 0.5 * (first_n == second_n)))


def _likelier_first(ranked: Sequence[int], cost_Kn: FloatArray) -> list[int]:
    """Return an order in which none is likelier to cost less than the one before it."""
    found: list[int] = []
    for k in ranked:
        at = len(found)
        while at > 0 and _p_less(cost_Kn[k], cost_Kn[found[at - 1]]) > 0.5:
            at -= 1
        found.insert(at, k)
    return found


def _is_far(
    data: LawData, placement: Placement, rank: float, seq_len: float, train_steps: float
) -> bool:
    """Return whether a needed rank, where there is one, is far beyond the points."""
    if not math.isfinite(rank):
        return False
    point = DesignPoint(int(rank), int(seq_len), int(train_steps))
    return is_far(data, PlacedPoint(point, placement))


def _costs(cost: Cost, placement: Placement, rank_n: FloatArray) -> FloatArray:
    """Return the cost under each sample, inf where no rank is enough."""
    possible = np.isfinite(rank_n)
    return np.where(possible, cost(placement, np.where(possible, rank_n, 1.0)), np.inf)
