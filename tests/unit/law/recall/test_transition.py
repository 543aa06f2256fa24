"""Sure and stubborn tokens against counts made by hand, and the onset against scipy."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from scipy.stats import spearmanr

from pmlray.law import measure_transition, token_runs
from pmlray.types import Observation
from tests.unit.law.recall_runs import made_run

RNG = np.random.default_rng(0)


def scattered(n: int, n_records: int, tokens: int) -> list[Observation]:
    """Runs whose tokens are wrong only at or below 0.5, half of the time there."""
    rng = np.random.default_rng(5)
    runs = []
    for i in range(n):
        p = rng.beta(3.0, 1.0 + i % 4, tokens)
        wrong = np.flatnonzero((p <= 0.5) & (rng.random(tokens) < 0.5))
        runs.append(made_run(f"run-{i}", 0.5, wrong.tolist(), tokens, n_records, 9.0, p.tolist()))
    return runs


@pytest.mark.parametrize("n_records", [1, 5])
def test_counts_and_onset_are_those_of_plain_loops(n_records: int) -> None:
    runs = scattered(20, n_records, 60)
    sure = stubborn = stubborn_right = 0
    first_stubborn, first_wrong = [], []
    for o in runs:
        sure += sum(p > 0.5 for p in o.token_p)
        stubborn += sum(p <= 0.5 for p in o.token_p)
        stubborn_right += sum(p <= 0.5 and i not in o.wrong_tokens for i, p in enumerate(o.token_p))
        length = 60 // n_records
        for start in range(0, 60, length):
            places = range(length)
            bad = [j for j in places if start + j in o.wrong_tokens]
            if bad:
                first_wrong.append(bad[0])
                low = [j for j in places if o.token_p[start + j] <= 0.5]
                first_stubborn.append(low[0])
    found = measure_transition(token_runs(runs), RNG)
    assert found.sure_wrong == 0 and found.sure_recalled == 1.0
    assert found.stubborn_recalled == pytest.approx(stubborn_right / stubborn)
    assert found.n_failed == len(first_wrong)
    expected = spearmanr(first_stubborn, first_wrong)[0]
    assert found.onset is not None
    assert found.onset.value == pytest.approx(expected)
    assert found.onset.low < found.onset.value < found.onset.high
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (stored["sure_tokens"], stored["stubborn_tokens"]) == (sure, stubborn)
    assert stored["runs"][3]["stubborn"] == runs[3].recall.n_stubborn
    spread = np.std(-np.log(runs[3].token_p))
    assert stored["runs"][3]["loss_sd"] == pytest.approx(spread)


def test_the_interval_is_that_of_runs_drawn_again() -> None:
    runs = token_runs(scattered(30, 1, 60))
    wide = measure_transition(runs, np.random.default_rng(1)).onset
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(300):
        chosen = [runs[i] for i in rng.integers(0, len(runs), len(runs))]
        pairs = [
            (int(np.argmax(r.p <= 0.5)), int(np.argmax(r.wrong))) for r in chosen if r.wrong.any()
        ]
        stubborn, wrong = np.array(pairs).T
        drawn.append(spearmanr(stubborn, wrong)[0])
    low, high = np.quantile(drawn, [0.05, 0.95])
    assert wide is not None
    assert (wide.low, wide.high) == pytest.approx((low, high), abs=0.1)


def test_a_sure_token_that_is_wrong_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    run = made_run("run-1", 0.5, [2], 4, 1, 9.0, [0.9, 0.4, 0.8, 0.6])
    with caplog.at_level(logging.ERROR):
        found = measure_transition(token_runs([run]), RNG)
    assert found.sure_wrong == 1 and found.sure_recalled == pytest.approx(2 / 3)
    assert "1 tokens with p > 0.5 count as wrong, which cannot be" in caplog.text


def test_without_failures_there_is_no_onset() -> None:
    right = measure_transition(token_runs([made_run("run-1", 0.1, [], 4, 1, 9.0)]), RNG)
    assert right.onset is None and right.stubborn_recalled is None and right.n_failed == 0
    same = [made_run(f"run-{i}", 3.0, [0], 4, 1, 9.0) for i in range(5)]
    alike = measure_transition(token_runs(same), RNG)
    assert alike.onset is None and alike.n_failed == 5
    none_sure = measure_transition(
        token_runs([made_run("run-1", 3.0, [0], 2, 1, 9.0, [0.1, 0.2])]), RNG
    )
    assert none_sure.sure_recalled is None and none_sure.stubborn_recalled == 0.5
    json.dumps(none_sure.to_json(), allow_nan=False)
