"""Which placement stores a text for least, and how sure that order is.

Shapes: n samples, K placements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.placements import Placement
from pmlray.law.sizing import LARGEST, SURE_LOSS, Estimate, order_statistics
from pmlray.law.target_predictions import TargetPrediction

# Costs (n,) of adapters of whole ranks (n,) at a placement; inf where a rank cannot be had there.
Cost = Callable[[Placement, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class PlacementNeed:
    """Whole rank that a loss reduction needs at a placement, what it costs, and the probability
    that no other of the placements compared costs less."""

    placement: Placement
    lora_rank: Estimate
    cost: Estimate
    p_best: float


@dataclass(frozen=True, slots=True)
class PlacementChoice:
    """Placements by rising median cost of a loss reduction of delta_loss nats per token, or in an
    order that was asked about.

    `p_first`: probability that the first costs less than the runner-up; `p_order`: that the whole
    order is so. Equal costs count as half, and as being in order. Both, and `p_best` of the needs,
    are of the samples in which any placement reaches it: the others tell nothing of the order.
    """

    seq_len: float
    train_steps: float
    delta_loss: float
    needs: tuple[PlacementNeed, ...]
    p_first: float
    p_order: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; inf becomes null."""

        def plain(found: Estimate) -> dict[str, float | None]:
            edges = {"value": found.value, "low": found.low, "high": found.high}
            return {name: x if math.isfinite(x) else None for name, x in edges.items()}

        return {
            "seq_len": self.seq_len,
            "train_steps": self.train_steps,
            "delta_loss": self.delta_loss,
            "placements": [
                {
                    "placement": need.placement.name,
                    "lora_rank": plain(need.lora_rank),
                    "cost": plain(need.cost),
                    "p_best": need.p_best,
                }
                for need in self.needs
            ],
            "p_first": self.p_first,
            "p_order": self.p_order,
        }


def adapter_params(placement: Placement, lora_rank: FloatArray) -> FloatArray:
    """Return the trainable parameters of adapters of these ranks."""
    return lora_rank * placement.params_per_rank


def choose_placement(
    samples: AveragedSamples,
    placements: Sequence[Placement],
    seq_len: float,
    train_steps: float,
    delta_loss: float,
    *,
    cost: Cost = adapter_params,
    level: float = 0.9,
    order: Sequence[Placement] | None = None,
) -> PlacementChoice:
    """Order placements by what a loss reduction costs there.

    Args:
        samples: posterior samples of a law whose points say their placements.
        placements: at least two, each with points or not.
        seq_len: supervised tokens of the text.
        train_steps: optimiser steps, 0 where the law has no budget term.
        delta_loss: loss reduction wanted, nats per token.
        cost: of an adapter; by default its trainable parameters.
        level: of the intervals.
        order: all of the placements, in the order whose probability is asked for; by default that
            of rising median cost.

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
    needs = tuple(
        PlacementNeed(
            placements[k],
            order_statistics(rank_Kn[k], level),
            order_statistics(cost_Kn[k], level),
            float(best_K[k]),
        )
        for k in ranked
    )
    ordered_Kn = compared_Kn[ranked]
    first, second = ordered_Kn[:2]
    p_first = float(np.mean((first < second) + 0.5 * (first == second)))
    p_order = float(np.mean(np.all(ordered_Kn[:-1] <= ordered_Kn[1:], axis=0)))
    return PlacementChoice(seq_len, train_steps, delta_loss, needs, p_first, p_order)


def choices_at(
    data: LawData,
    samples: AveragedSamples,
    targets: Sequence[TargetPrediction],
    delta_loss: float | None,
) -> tuple[PlacementChoice, ...]:
    """Return the choice among the points' placements at each length and steps of the targets,
    without any at the largest measured.

    delta_loss: nats per token; by default what brings the mean loss down to ln 2. Empty where the
    points have one placement, or where the base loss that the default needs is not known.
    """
    if not data.several_placements or (delta_loss is None and not samples.base.known):
        return ()
    asked = [(t.point.seq_len, t.point.train_steps) for t in targets]
    largest = (int(data.seq_len.max()), int(data.train_steps.max()))
    found: list[PlacementChoice] = []
    for seq_len, steps in dict.fromkeys(asked or [largest]):
        wanted = delta_loss
        if wanted is None:
            wanted = float(samples.base.at(seq_len)) - SURE_LOSS
        found.append(choose_placement(samples, data.placements, seq_len, steps, wanted))
    return tuple(found)


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


def _costs(cost: Cost, placement: Placement, rank_n: FloatArray) -> FloatArray:
    """Return the cost under each sample, inf where no rank is enough."""
    found = np.full(rank_n.size, np.inf)
    possible = np.isfinite(rank_n)
    found[possible] = cost(placement, rank_n[possible])
    return found
