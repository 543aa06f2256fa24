"""Which loss a wanted recall takes: the law of recall against its closed form, and the rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from pmlray.study.sizing.needed_loss import loss_for_recall, needed_loss
from pmlray.types import Observation, Recall
from tests.unit.law.recall_runs import made_run

LN2 = math.log(2.0)
BASE_LOSS = 4.0
HALF, STEEPNESS = 1.2, 0.9


def seen(final_loss: float, exact: float) -> Observation:
    run = made_run("run-0", final_loss, (), 800, 100, BASE_LOSS)
    return replace(run, recall=Recall(exact, exact, exact, 0))


def test_the_loss_that_recall_takes_is_read_off_the_runs() -> None:
    runs = [(0.004, 1.0), (0.03, 1.0), (0.05, 0.97), (0.06, 1.0), (0.2, 0.7), (1.0, 0.0)]
    observations = [seen(loss, exact) for loss, exact in runs]
    # At 0.05 and 0.06 the runs disagree and pool to 0.985.
    assert loss_for_recall(observations, 0.99, 8.0) == 0.03
    assert loss_for_recall(observations, 0.98, 8.0) == 0.06
    assert loss_for_recall(observations, 0.7, 8.0) == 0.2
    assert loss_for_recall(observations[::-1], 0.99, 8.0) == 0.03


def test_where_no_run_recalls_enough_the_loss_keeps_tokens_below_ln_2() -> None:
    observations = [seen(1.0, 0.0)]
    loss = loss_for_recall(observations, 0.9, 8.0)
    draws = np.random.default_rng(0).exponential(2.0 * loss, (200_000, 8))
    # Twice that loss is where exponential token losses just reach the recall.
    assert np.mean((draws < LN2).all(axis=1)) == pytest.approx(0.9, abs=0.003)
    assert 0.0 < loss_for_recall([], 1.0, 8.0) < loss_for_recall([], 0.9, 8.0) < LN2


def with_tokens(losses: Sequence[float], n_records: int, tokens: int) -> list[Observation]:
    """Runs whose tokens are wrong by a coin of their own; its odds go with the loss's."""
    rng = np.random.default_rng(1)
    found = []
    for i, loss in enumerate(losses):
        p_wrong = NormalDist().cdf(STEEPNESS * math.log(odds(loss) / odds(HALF)))
        wrong = np.flatnonzero(rng.random(n_records * tokens) < p_wrong).tolist()
        found.append(made_run(f"run-{i}", loss, wrong, n_records * tokens, n_records, BASE_LOSS))
    return found


def odds(loss: float) -> float:
    return loss / (BASE_LOSS - loss)


def test_the_needed_loss_is_that_of_the_law_of_recall() -> None:
    tokens, recall = 6, 0.9
    runs = with_tokens((0.05, 0.1, 0.2, 0.4, 0.8, 1.5), 300, tokens)
    found = needed_loss(runs, recall, float(tokens))
    # A record is right when all of its independent tokens are.
    p_wrong = 1.0 - recall ** (1.0 / tokens)
    wanted = odds(HALF) * math.exp(NormalDist().inv_cdf(p_wrong) / STEEPNESS)
    by_odds = BASE_LOSS * wanted / (1.0 + wanted)
    assert found.basis == "recall_law"
    low, high = np.quantile(found.draws, [0.02, 0.98])
    assert low < by_odds < high
    assert found.value == pytest.approx(by_odds, rel=0.2)


def test_the_rule_of_thumb_serves_where_runs_carry_no_law_of_recall() -> None:
    few = with_tokens((0.1, 0.2, 0.4), 300, 6)
    all_or_nothing = [
        *(made_run(f"good-{i}", 0.01, (), 60, 10, BASE_LOSS) for i in range(5)),
        *(made_run(f"bad-{i + 5}", 3.0, range(60), 60, 10, BASE_LOSS) for i in range(5)),
    ]
    for runs, why in ((few, "3 of its runs"), (all_or_nothing, "0 of its runs"), ([], "no SFT")):
        found = needed_loss(runs, 0.9, 6.0)
        assert (found.basis, found.value) == ("rule", loss_for_recall(runs, 0.9, 6.0))
        assert why in found.why and found.draws.tolist() == [found.value]
