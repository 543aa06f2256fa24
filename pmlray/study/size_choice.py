"""Which rank a law says is enough for a wanted recall, and which to try when it was not."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    The largest loss of a run down to which exact recall, made to fall with the loss (isotonic
    regression, runs weighted by their records), is at least that. Where no run has come so far: a
    token below ln 2 is sure to be decoded (arXiv 2605.30260), and token losses spread like an
    exponential distribution of mean m leave (1 - e^(-ln 2 / m))^n of records with n tokens all
    below it; half of that m, since real tails are heavier.
    """
    losses = np.array([o.final_loss for o in observations])
    exact = np.array([o.recall.exact for o in observations])
    n_records = np.array([o.supervised_tokens / tokens_per_record for o in observations])
    order = np.argsort(losses)
    if order.size:
        fitted = isotonic_regression(exact[order], weights=n_records[order], increasing=False).x
        enough = losses[order][fitted >= recall]
        if enough.size:
            return float(enough.max())
    missed = 1.0 - min(recall, MOST_RECALL) ** (1.0 / tokens_per_record)
    return SURE_LOSS / 2.0 / -math.log(missed)


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
    assert law.average_samples is not None, "the law needs a target to size at"
    needed = loss_for_recall(observations, wanted.recall, tokens_per_record)
    delta = law.average.base_loss - needed
    level = 2.0 * wanted.confidence - 1.0
    rank = size_for(law.average, law.average_samples, point, delta, level).lora_rank
    upper = math.ceil(max(rank.high, 1.0)) if math.isfinite(rank.high) else math.inf
    whole = [
        o
        for o in observations
        if o.point.seq_len == point.seq_len
        and o.point.train_steps == point.train_steps
        and o.point.lora_rank <= point.lora_rank
    ]
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


def next_rank(rank: int, choice: Choice, largest: int) -> int | None:
    """The rank to try after one that recalled too little: one that a run has shown to do, else half
    as much again; None when it was the largest."""
    if choice.shown is not None and rank < choice.shown.point.lora_rank:
        return choice.shown.point.lora_rank
    if rank >= largest:
        return None
    return min(largest, rank + max(1, math.ceil(rank / 2)))
