"""Choice of the smallest rank that reaches a wanted recall by a law, and of the next to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pmlray.errors import DataError
from pmlray.law import Estimate, LawSummary, Placement
from pmlray.law.data import FloatArray
from pmlray.study.sizing.needed_loss import NeededLoss, needed_loss
from pmlray.study.sizing.request import Wanted
from pmlray.types import DesignPoint, Observation

# Standard deviation of the log of a run's final loss over seeds, the records being the same: 0.16
# of SFT on five random texts, 0.07 on 75 facts (scripts/bench/results/sizing.md).
RUN_NOISE = 0.16
# Form of `Law.invert_rank`: the rank that reaches a delta_loss at (l, T).
Invert = Callable[[float, float, float], float]
Basis = Literal["law", "measured", "failed_below", "largest", "estimate", "start"]


@dataclass(frozen=True, slots=True)
class RankChoice:
    """Rank to train, and the basis of its choice.

    `basis`: `law`, its upper confidence bound; `measured`, a run of the search on the whole set
    that recalled enough below that bound; `failed_below`, one rank more than such a run that
    recalled too little, while the bound is lower; `largest`, the largest that the search was
    planned for, since the bound is above it while the law's own estimate is not; `estimate`, that
    estimate, where it is above it too, so that no bound told there is one to train by; `start`, the
    rank of the adapter to begin with, where less were enough. `needed` is the loss that the recall
    takes, `delta_loss` (nats per token) how far below the base loss that is, and `rank` the law's
    estimate for it with its interval, each end one-sided at the wanted confidence. `shown`: the
    smallest run of the search on the whole set that recalled enough, None where none did.
    """

    point: DesignPoint
    basis: Basis
    needed: NeededLoss
    delta_loss: float
    rank: Estimate
    shown: Observation | None = None


def choose_rank(
    law: LawSummary,
    observations: Sequence[Observation],
    wanted: Wanted,
    point: DesignPoint,
    tokens_per_record: float,
    limit: int | None = None,
    least: int = 1,
    placement: Placement | None = None,
) -> RankChoice:
    """Return the smallest rank that the law's bound, or a run of the search, shows to be enough.

    observations: those the law was fitted to; point: the largest rank that the search was planned
    for, at the whole set's l and T; limit: the largest rank allowed, by default that one; least:
    the smallest; placement: whose ranks are meant, of a law of several; the point names it.
    DataError when even the law's own estimate is above the limit.
    """
    needed = needed_loss(observations, wanted.recall, tokens_per_record)
    delta = law.average.base_loss - needed.value
    whole = [
        o
        for o in observations
        if o.point.seq_len == point.seq_len
        and o.point.train_steps == point.train_steps
        and o.point.lora_rank <= point.lora_rank
        and o.point.placement == point.placement
    ]
    rank = needed_rank(law, whole, needed, point, 2.0 * wanted.confidence - 1.0, placement)
    bound = math.ceil(max(rank.high, 1.0)) if math.isfinite(rank.high) else math.inf
    enough = [o for o in whole if o.recall.exact >= wanted.recall]
    shown = min(enough, key=lambda o: (o.point.lora_rank, o.final_loss), default=None)
    below = math.inf if shown is None else shown.point.lora_rank
    # A rank that a run has shown to be too small is excluded, whatever the law predicts.
    upper = max([bound, *(o.point.lora_rank + 1 for o in whole if o.point.lora_rank < below)])
    basis: Basis
    if shown is not None and shown.point.lora_rank <= upper:
        basis, chosen = "measured", shown.point.lora_rank
    elif upper <= point.lora_rank:
        basis, chosen = "law" if upper == bound else "failed_below", int(upper)
    elif rank.value <= point.lora_rank:
        basis, chosen = "largest", point.lora_rank
    elif rank.value <= (limit or point.lora_rank):
        basis, chosen = "estimate", math.ceil(rank.value)
    else:
        raise DataError(
            f"to recall {wanted.recall:.4g} of the records after {point.train_steps} steps takes a"
            f" rank of about {rank.value:.3g} by the law, and the largest allowed is"
            f" {limit or point.lora_rank}: train longer (--steps), allow a larger rank"
            " (--max-rank), ask for less recall, or split the records over several adapters"
        )
    if chosen < least:
        basis, chosen = "start", least
    at = replace(point, lora_rank=chosen)
    return RankChoice(at, basis, needed, delta, rank, shown)


def needed_rank(
    law: LawSummary,
    whole: Sequence[Observation],
    needed: NeededLoss,
    point: DesignPoint,
    level: float,
    placement: Placement | None = None,
) -> Estimate:
    """Return the rank that the needed loss takes at a point, with its central interval.

    whole: runs at the point's l, T and placement; placement: as in `choose_rank`. The run whose
    loss is nearest to that needed anchors the law: each sample gives the factor by which the rank
    must change from there, so that its error common to all of these runs cancels. Without such a
    run, or where the law gives no rank for it, the law is used alone. The interval covers the
    uncertainty of the law and of the needed loss, and the noise of single runs: of the one to be
    trained, and of the anchor.
    """
    average, at = law.average, (float(point.seq_len), float(point.train_steps))
    samples = law.average_samples
    laws = (samples if placement is None else samples.at(placement)).laws
    # The seed is fixed, so that the same runs give the same answer.
    noise = RUN_NOISE * np.random.default_rng(0).standard_normal((2, len(laws)))
    losses = np.resize(needed.draws, len(laws)).tolist()

    def alone(invert: Invert, loss: float, noise: tuple[float, float]) -> float:
        return invert(*at, average.base_loss - _with_noise(loss, noise[0], average.base_loss))

    anchor = min(whole, key=lambda o: abs(math.log(o.final_loss / needed.value)), default=None)

    def rescaled(invert: Invert, loss: float, noise: tuple[float, float]) -> float:
        assert anchor is not None
        # By its final loss: the base losses of subsets differ a little from that of the whole.
        at_anchor = alone(invert, anchor.final_loss, (noise[1], 0.0))
        if not 0.0 < at_anchor < math.inf:
            return math.nan
        return anchor.point.lora_rank * alone(invert, loss, noise) / at_anchor

    def ranks(
        told: Callable[[Invert, float, tuple[float, float]], float],
    ) -> tuple[FloatArray, FloatArray]:
        """Return the ascending ranks by each law, with noise and without.

        Laws that give no rank are left out.
        """
        drawn = [
            told(one.invert_rank, loss, (own, of_anchor))
            for one, loss, own, of_anchor in zip(laws, losses, *noise.tolist(), strict=True)
        ]
        middle = [told(one.invert_rank, needed.value, (0.0, 0.0)) for one in laws]
        return _known(drawn), _known(middle)

    known, certain = ranks(alone if anchor is None else rescaled)
    if not (known.size and certain.size):
        known, certain = ranks(alone)
    edge = int((1.0 - level) / 2.0 * (known.size - 1))
    value = float(certain[(certain.size - 1) // 2])
    return Estimate(value, float(known[edge]), float(known[known.size - 1 - edge]))


def _known(values: Sequence[float]) -> FloatArray:
    return np.sort([value for value in values if not math.isnan(value)])


def _with_noise(loss: float, noise: float, base_loss: float) -> float:
    """Return a loss whose odds, as a share of the base loss, are multiplied by e^noise.

    The log of a small loss moves by that noise, and no loss leaves the range in which a run can
    end.
    """
    if noise == 0.0 or not 0.0 < loss < base_loss:
        return loss
    odds = loss / (base_loss - loss) * math.exp(noise)
    return base_loss * odds / (1.0 + odds)


def next_rank(rank: int, choice: RankChoice, largest: int) -> int | None:
    """Return the rank to try after one that recalled too little, None after the largest.

    It is one that a run has shown to be enough, else half as much again.
    """
    if choice.shown is not None and rank < choice.shown.point.lora_rank:
        return choice.shown.point.lora_rank
    if rank >= largest:
        return None
    return min(largest, rank + max(1, math.ceil(rank / 2)))
