"""Mean loss that a wanted recall takes: by the law of recall, or by a rule of thumb."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from pmlray.errors import FitError
from pmlray.law import fit_recall, token_runs
from pmlray.law.data import FloatArray
from pmlray.law.sizing import SURE_LOSS
from pmlray.types import Observation

# Share that stands for all of the records: half a record in a thousand is missed.
MOST_RECALL = 0.9995
# Least number of runs recalled in part for a law of recall to be trusted: with fewer, its weak
# prior would dominate.
PARTLY_RECALLED = 5
LOSS_DRAWS = 200


@dataclass(frozen=True, slots=True)
class NeededLoss:
    """Mean loss, nats per token, that a wanted recall takes of a plain SFT run.

    `basis` names its source: the `recall_law` of the search's own runs, or the `rule` of thumb
    where they allow no such law, for the reason `why`. `draws` (n,) are samples of the loss by its
    uncertainty; the rule has none and gives only its value.
    """

    value: float
    basis: Literal["recall_law", "rule"]
    why: str
    draws: FloatArray


def needed_loss(
    observations: Sequence[Observation], recall: float, tokens_per_record: float
) -> NeededLoss:
    """Return the loss that `recall` of records of so many tokens takes.

    By the law of recall where it can be fitted and enough runs are recalled in part; else by
    `loss_for_recall`. The draws' seed is fixed, so that the same runs give the same answer.
    """
    try:
        runs = token_runs(observations)
        partly = sum(bool(run.wrong.any() and not run.wrong.all()) for run in runs)
        if partly < PARTLY_RECALLED:
            raise FitError(
                f"{partly} of its runs are recalled in part and {PARTLY_RECALLED} are needed"
            )
        law = fit_recall(observations)
    except FitError as error:
        value = loss_for_recall(observations, recall, tokens_per_record)
        return NeededLoss(value, "rule", str(error), np.array([value]))
    share = min(recall, MOST_RECALL)
    draws = law.loss_samples(share, tokens_per_record, LOSS_DRAWS, np.random.default_rng(0))
    return NeededLoss(law.loss_for(share, tokens_per_record), "recall_law", "", draws)


def loss_for_recall(
    observations: Sequence[Observation], recall: float, tokens_per_record: float
) -> float:
    """Return the mean loss, nats per token, at which `recall` of records is recalled.

    A rule of thumb: a token below ln 2 is sure to be decoded (arXiv 2605.30260), and token losses
    that spread like an exponential distribution of mean m leave (1 - e^(-ln 2 / m))^n of records
    with n tokens all below it; half of that m, since real tails are heavier. The runs override it.
    Let s be the largest loss at which exact recall, made to fall with the loss (isotonic
    regression, runs weighted by their records), is at least `recall`: the result is s where that is
    larger than the rule's loss, or where a run at or below the rule's loss recalled less.
    """
    losses = np.array([o.final_loss for o in observations])
    exact = np.array([o.recall.exact for o in observations])
    n_records = np.array([o.supervised_tokens / tokens_per_record for o in observations])
    missed = 1.0 - min(recall, MOST_RECALL) ** (1.0 / tokens_per_record)
    expected = SURE_LOSS / 2.0 / -math.log(missed)
    order = np.argsort(losses)
    if not order.size:
        return expected
    fitted = scipy.optimize.isotonic_regression(
        exact[order], weights=n_records[order], increasing=False
    ).x
    enough = losses[order][fitted >= recall]
    shown = float(enough.max()) if enough.size else 0.0
    failed = bool(np.any((losses <= expected) & (exact < recall)))
    return shown if failed and shown else max(shown, expected)
