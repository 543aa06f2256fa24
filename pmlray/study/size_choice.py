"""Which rank a law says is enough for a wanted recall, and which to try when it was not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

from pmlray.errors import DataError
from pmlray.law import Estimate, LawSummary, size_for
from pmlray.law.summary import SURE_LOSS
from pmlray.study.size import Wanted
from pmlray.types import DesignPoint, Observation

# What all of the records mean as a share: half a record of a thousand.
MOST_RECALL = 0.9995


@dataclass(frozen=True, slots=True)
class Choice:
    """The rank to train, and why.

    `basis`: `law`, its upper confidence bound; `measured`, a run of the search on the whole set
    that recalled enough below that bound; `largest`, since the bound is above it while the law's
    own estimate is not. `needed_loss` and `delta_loss` are nats per token at `point`; `rank` is the
    law's estimate with its interval, each end one-sided at the wanted confidence. `shown`: the
    smallest run of the search on the whole set that recalled enough, None where none did.
    """

    point: DesignPoint
    basis: Literal["law", "measured", "largest"]
    needed_loss: float
    delta_loss: float
    rank: Estimate
    shown: Observation | None = None


def loss_for_recall(
    observations: Sequence[Observation], recall: float, tokens_per_record: float
) -> float:
    """Mean loss, nats per token, at which `recall` of the records are recalled wholly.

    A token below ln 2 is sure to be decoded (arXiv 2605.30260), and token losses that spread like
    an exponential distribution of mean m leave (1 - e^(-ln 2 / m))^n of records with n tokens all
    below it; half of that m, since real tails are heavier. The runs overrule it: upwards to the
    largest loss down to which exact recall, made to fall with the loss (isotonic regression, runs
    weighted by their records), is at least that, and down to there where one has recalled less.
    """
    losses = np.array([o.final_loss for o in observations])
    exact = np.array([o.recall.exact for o in observations])
    n_records = np.array([o.supervised_tokens / tokens_per_record for o in observations])
    missed = 1.0 - min(recall, MOST_RECALL) ** (1.0 / tokens_per_record)
    expected = SURE_LOSS / 2.0 / -math.log(missed)
    order = np.argsort(losses)
    if not order.size:
        return expected
    fitted = isotonic_regression(exact[order], weights=n_records[order], increasing=False).x
    enough = losses[order][fitted >= recall]
    shown = float(enough.max()) if enough.size else 0.0
    failed = bool(np.any((losses <= expected) & (exact < recall)))
    return shown if failed and shown else max(shown, expected)


def choose_rank(
    law: LawSummary,
    observations: Sequence[Observation],
    wanted: Wanted,
    point: DesignPoint,
    tokens_per_record: float,
) -> Choice:
    """The smallest rank that the law is sure of, or that a run of the search has shown to do.

    law: with average_samples; observations: those it was fitted to; point: the largest rank allowed
    at the whole set's l and T. DataError when even the law's own estimate is above that rank.
    """
    needed = loss_for_recall(observations, wanted.recall, tokens_per_record)
    delta = law.average.base_loss - needed
    whole = [
        o
        for o in observations
        if o.point.seq_len == point.seq_len
        and o.point.train_steps == point.train_steps
        and o.point.lora_rank <= point.lora_rank
    ]
    rank = needed_rank(law, whole, needed, point, 2.0 * wanted.confidence - 1.0)
    upper = math.ceil(max(rank.high, 1.0)) if math.isfinite(rank.high) else math.inf
    enough = [o for o in whole if o.recall.exact >= wanted.recall]
    shown = min(enough, key=lambda o: (o.point.lora_rank, o.final_loss), default=None)
    below = math.inf if shown is None else shown.point.lora_rank
    # What a run has shown to be too small is, whatever the law says.
    upper = max([upper, *(o.point.lora_rank + 1 for o in whole if o.point.lora_rank < below)])
    if shown is not None and shown.point.lora_rank <= upper:
        basis, chosen = "measured", shown.point.lora_rank
    elif upper <= point.lora_rank:
        basis, chosen = "law", int(upper)
    elif rank.value <= point.lora_rank:
        basis, chosen = "largest", point.lora_rank
    else:
        raise DataError(
            f"to recall {wanted.recall:.4g} of the records after {point.train_steps} steps takes a"
            f" rank of about {rank.value:.3g} by the law, and the largest allowed is"
            f" {point.lora_rank}: train longer (--steps), allow a larger rank (--max-rank), ask for"
            " less recall, or split the records over several adapters"
        )
    at = DesignPoint(chosen, point.seq_len, point.train_steps)
    return Choice(at, basis, needed, delta, rank, shown)


def needed_rank(
    law: LawSummary,
    whole: Sequence[Observation],
    needed_loss: float,
    point: DesignPoint,
    level: float,
) -> Estimate:
    """The rank that needed_loss (nats per token) takes at a point, with its central interval.

    whole: runs at the point's l and T. The one whose loss is nearest to that needed anchors the
    law: each sample says by what factor the rank must change from there, and what it misses about
    all of these runs cancels. That run's own noise is not in the interval. Without such a run, the
    law alone.
    """
    assert law.average_samples is not None, "the law needs a target to size at"
    average, (l_tokens, steps) = law.average, (point.seq_len, point.train_steps)
    delta = average.base_loss - needed_loss
    anchor = min(whole, key=lambda o: abs(math.log(o.final_loss / needed_loss)), default=None)
    if anchor is None:
        return size_for(average, law.average_samples, point, delta, level).lora_rank
    # By its final loss: the base losses of subsets differ a little from that of the whole.
    reached = average.base_loss - anchor.final_loss

    def rescaled(invert: Callable[[float, float, float], float]) -> float:
        at_anchor = invert(l_tokens, steps, reached)
        if not 0.0 < at_anchor < math.inf:
            return math.nan
        return anchor.point.lora_rank * invert(l_tokens, steps, delta) / at_anchor

    samples = [
        rescaled(fit.law.with_params(params).invert_rank)
        for fit, drawn in law.average_samples.parts
        for params in drawn
    ]
    known = np.sort([rank for rank in samples if not math.isnan(rank)])
    value = rescaled(average.invert_rank)
    if not known.size or math.isnan(value):
        return size_for(average, law.average_samples, point, delta, level).lora_rank
    edge = int((1.0 - level) / 2.0 * (known.size - 1))
    return Estimate(value, float(known[edge]), float(known[known.size - 1 - edge]))


def next_rank(rank: int, choice: Choice, largest: int) -> int | None:
    """The rank to try after one that recalled too little: one that a run has shown to do, else half
    as much again; None when it was the largest."""
    if choice.shown is not None and rank < choice.shown.point.lora_rank:
        return choice.shown.point.lora_rank
    if rank >= largest:
        return None
    return min(largest, rank + max(1, math.ceil(rank / 2)))
