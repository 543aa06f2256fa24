"""The law of recall against plain loops, Monte Carlo, and the measured tables of SmolLM2-135M."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.special import ndtr

from pmlray.errors import DataError, FitError
from pmlray.law import (
    AveragedLaw,
    AveragedSamples,
    CeilingLaw,
    LawData,
    RecallLaw,
    average_laws,
    fit_recall,
    forecast_recall,
)
from pmlray.law.recall.forecast import run_losses
from pmlray.law.recall.recall_law import LEAD_TOKENS
from pmlray.types import DesignPoint, Observation
from tests.unit.law.recall_runs import made_run

BASE = 12.0
TRUE = RecallLaw(3.0, 1.2, 2.4, 0.25, BASE, np.zeros((4, 4)), None, 0)
BOOK = replace(TRUE, half_loss=1.2, spread=0.12, tokens_per_record=10.0)
TABLES = Path(__file__).parents[4] / "searches" / "tables"


def p_wrong(law: RecallLaw, loss: float, place: ArrayLike, v: ArrayLike) -> np.ndarray:
    """The formula of the law's docstring, of the token at each place; `v` broadcasts."""
    share = loss / law.base_loss
    half = law.half_loss / law.base_loss
    odds = math.log(share / (1 - share)) - math.log(half / (1 - half))
    lead = law.lead * (1 - share) * np.exp(-np.asarray(place) / LEAD_TOKENS)
    return ndtr(law.steepness * odds - lead + law.spread * np.asarray(v))


def runs_of(
    law: RecallLaw, n: int, n_records: int, seed: int, tokens: int = 40
) -> list[Observation]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        loss = float(rng.uniform(0.01, 0.9) ** 2 * law.base_loss)
        v = float(rng.standard_normal())
        q = np.tile(p_wrong(law, loss, np.arange(tokens), v), n_records)
        wrong = np.flatnonzero(rng.random(q.size) < q)
        found.append(made_run(f"run-{i}", loss, wrong.tolist(), q.size, n_records, law.base_loss))
    return found


@pytest.mark.parametrize(("law", "tokens", "n_records"), [(TRUE, 60, 1), (BOOK, 10, 6)])
def test_a_fit_recovers_the_law(law: RecallLaw, tokens: int, n_records: int) -> None:
    fit = fit_recall(runs_of(law, 150, n_records, 1, tokens))
    assert fit.n_runs == 150
    assert fit.tokens_per_record == (None if n_records == 1 else 10.0)
    off = np.abs(fit.params - law.params) / np.sqrt(np.diag(fit.cov))
    assert np.all(off[:3] < 3.0)
    # The spread is that of the runs furthest out, of which there are fewer.
    assert fit.spread == pytest.approx(law.spread, abs=0.25)


@pytest.mark.parametrize("loss", [0.02, 0.4, 1.5, 4.0])
@pytest.mark.parametrize("tokens", [1, 10, 40])
def test_expected_recall_is_that_of_a_simulation(loss: float, tokens: int) -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((1500, 1))
    right = rng.random((1500, tokens)) >= p_wrong(TRUE, loss, np.arange(tokens), v)
    token, exact = right.mean(axis=1), right.all(axis=1)
    prefix = np.cumprod(right, axis=1).mean(axis=1)
    found = TRUE.predict(loss, tokens)
    for got, drawn in ((found.token, token), (found.prefix, prefix), (found.exact, exact)):
        error = float(np.std(drawn)) / math.sqrt(len(drawn)) + 1e-3
        assert float(got) == pytest.approx(np.mean(drawn), abs=4 * error)


def test_alike_tokens_without_spread_recall_as_independent_ones() -> None:
    law = replace(TRUE, lead=0.0, spread=1e-9)
    for loss in (0.01, 0.7, 5.0):
        right = 1 - float(p_wrong(law, loss, 0, 0.0))
        found = law.predict(loss, 1000)
        assert float(found.token) == pytest.approx(right)
        assert float(found.exact) == pytest.approx(right**1000)
        prefix = sum(right**j for j in range(1, 1001)) / 1000
        assert float(found.prefix) == pytest.approx(prefix)


@pytest.mark.parametrize(("tokens", "n_records"), [(10, 1), (10, 30), (400, 1)])
def test_drawn_runs_are_those_of_a_simulation(tokens: int, n_records: int) -> None:
    law = replace(TRUE, spread=0.6)
    loss = 0.7 if tokens == 10 else 0.4
    drawn = law.sample(np.full(4000, loss), tokens, n_records, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    q = p_wrong(law, loss, np.arange(tokens), rng.standard_normal((1500, 1, 1)))
    right = rng.random((1500, n_records, tokens)) >= q
    token = right.mean(axis=(1, 2))
    prefix = np.cumprod(right, axis=2).mean(axis=(1, 2))
    exact = right.all(axis=2).mean(axis=1)
    for got, simulated in ((drawn.token, token), (drawn.prefix, prefix), (drawn.exact, exact)):
        error = float(np.std(simulated)) / math.sqrt(1500)
        assert got.mean() == pytest.approx(np.mean(simulated), abs=5 * error)
        # The standard error of a standard deviation, from the fourth moment.
        fourth = float(np.mean((simulated - np.mean(simulated)) ** 4))
        sd = float(np.std(simulated))
        assert got.std() == pytest.approx(sd, abs=2 * math.sqrt((fourth / sd**2 - sd**2) / 1500))


def test_every_drawn_run_could_have_been_measured() -> None:
    law = replace(TRUE, cov=np.diag([0.1, 0.02, 0.5, 0.1]))
    rng = np.random.default_rng(0)
    for tokens, n_records in ((300, 1), (7, 12)):
        drawn = law.sample(rng.uniform(0.0, 14.0, 3000), tokens, n_records, rng)
        assert np.all((drawn.exact >= 0) & (drawn.exact <= drawn.prefix + 1e-12))
        assert np.all((drawn.prefix <= drawn.token + 1e-12) & (drawn.token <= 1))
        assert np.array_equal(drawn.exact == 1.0, drawn.token == 1.0)
        assert np.array_equal(drawn.exact == 1.0, drawn.prefix == 1.0)
        counted = drawn.token * tokens * n_records
        assert np.allclose(counted, np.round(counted))


def test_recall_falls_with_the_loss_and_with_the_record() -> None:
    losses = np.geomspace(1e-4, 11.9, 40)
    for tokens in (1, 10, 1000):
        found = TRUE.predict(losses, tokens)
        for shares in (found.token, found.prefix, found.exact):
            assert np.all(np.diff(shares) < 1e-12)
    assert np.all(TRUE.predict(losses, 100).exact <= TRUE.predict(losses, 10).exact)
    assert float(TRUE.predict(0.0, 1000).exact) == pytest.approx(1.0, abs=1e-6)
    assert float(TRUE.predict(20.0, 10).token) < 1e-6


@pytest.mark.parametrize("tokens", [1, 10, 5000])
def test_the_loss_for_a_recall_gives_that_recall(tokens: int) -> None:
    losses = [TRUE.loss_for(wanted, tokens) for wanted in (0.999, 0.9, 0.5)]
    assert losses == sorted(losses)
    for loss, wanted in zip(losses, (0.999, 0.9, 0.5), strict=True):
        assert float(TRUE.predict(loss, tokens).exact) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("wanted", [0.0, 1.0, -1.0, math.nan])
def test_a_recall_that_no_loss_gives_is_refused(wanted: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        TRUE.loss_for(wanted, 10)
    with pytest.raises(DataError, match="record of 0 tokens"):
        TRUE.predict(1.0, 0)


def refused(observations: Sequence[Observation], message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_recall(observations)


def test_says_what_a_fit_lacks() -> None:
    runs = runs_of(TRUE, 8, 1, 0)
    all_right = [made_run(f"r{i}", 0.1, [], 10, 1, BASE) for i in range(6)]
    all_wrong = [made_run(f"w{i}", 9.0, list(range(10)), 10, 1, BASE) for i in range(6)]
    refused([], "no SFT run is measured")
    refused(runs[:4], "at least 5 runs and there are 4")
    refused(all_right, "every token of every run is recalled.*lower ranks")
    refused(all_wrong, "no token of any run is recalled.*higher ranks")
    refused([replace(o, token_p=(), wrong_tokens=()) for o in runs], "not replayed")
    refused([replace(o, task="records", provenance={}) for o in runs], "measure again")
    refused([replace(o, phase="memft") for o in runs], "no SFT run is measured")
    # A text of one record needs no count; MemFT's runs change nothing.
    bare = [replace(o, provenance={}) for o in runs]
    memft = replace(runs[0], phase="memft", method="memft_ot", wrong_tokens=tuple(range(40)))
    assert fit_recall([*bare, memft]).params == pytest.approx(fit_recall(runs).params)


def test_few_runs_that_separate_perfectly_still_give_a_law() -> None:
    runs = [made_run(f"r{i}", 0.1 + 0.01 * i, [], 20, 1, BASE) for i in range(4)]
    runs += [made_run(f"w{i}", 8.0 + i / 4, list(range(20)), 20, 1, BASE) for i in range(4)]
    law = fit_recall(runs)
    assert float(law.predict(0.1, 20).exact) > 0.9 and float(law.predict(9.0, 20).token) < 0.1
    assert np.all(np.linalg.eigvalsh(law.cov) > 0) and law.to_json()["n_runs"] == 8


# What `fit_recall` gave for runs that are in neither table: 46 and 27 runs of one text each, on
# another machine.
MEASURED = {
    "long_context": RecallLaw(3.169, 1.0293, 1.148, 0.0973, 13.606, np.zeros((4, 4)), None, 46),
    "phonebook": RecallLaw(0.7963, 0.7534, 2.818, 0.1326, 3.409, np.zeros((4, 4)), 10.0, 27),
}


@pytest.mark.parametrize("task", list(MEASURED))
def test_measured_recall_is_predicted_better_than_by_the_rivals(task: str) -> None:
    law = MEASURED[task]
    lines = (TABLES / f"smollm2_{task}.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    errors = np.zeros((len(rows), 3, 3))
    for n, row in enumerate(rows):
        loss, (tokens, _) = float(row["final_loss_nats"]), law.records(float(row["length"]))
        found = law.predict(loss, tokens)
        p = math.exp(-loss)
        independent = (p, sum(p**j for j in range(1, int(tokens) + 1)) / tokens, p**tokens)
        threshold = (float(loss < math.log(2)),) * 3
        for i, name in enumerate(("token", "prefix", "exact")):
            measured = float(row[f"{name}_recall"])
            for k, guess in enumerate((getattr(found, name), independent[i], threshold[i])):
                errors[n, i, k] = abs(float(guess) - measured)
    assert np.all(errors[:, :, 0].mean(axis=0) < 0.035)
    # Squares, which for a record that is recalled or not are Brier's score: the mean absolute error
    # would favour certainty.
    ours, independent, threshold = (errors**2).mean(axis=0).T
    assert np.all(ours < 0.3 * independent) and np.all(ours < 0.85 * threshold)


LOSS_LAW = CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, BASE)


def loss_data() -> LawData:
    r, n = (
        x.ravel().astype(float) for x in np.meshgrid((1, 2, 4, 8, 16), (50, 100, 200, 400, 800))
    )
    rng = np.random.default_rng(0)
    r, n = np.tile(r, 8), np.tile(n, 8)
    final = BASE - LOSS_LAW.predict(r, n, 0.0)
    # The nearer to saturation, the closer runs repeat.
    final = np.maximum(final * np.exp(0.2 * rng.standard_normal(r.size)), 1e-3)
    base = np.full(r.size, BASE)
    return LawData(r, n, np.zeros(r.size), base - final, base, final, np.arange(r.size))


@pytest.fixture(scope="module")
def loss_fit() -> tuple[LawData, AveragedLaw, AveragedSamples]:
    data = loss_data()
    average = average_laws(data, ("ceiling",))
    return data, average, average.sample(60, np.random.default_rng(0))


def test_a_new_run_scatters_as_the_runs_near_it_do(
    loss_fit: tuple[LawData, AveragedLaw, AveragedSamples],
) -> None:
    data, average, samples = loss_fit
    for rank, length in ((16, 50), (8, 400), (1, 800)):
        drawn = run_losses(
            average, samples, data, DesignPoint(rank, length, 1), np.random.default_rng(0)
        )
        here = data.final_loss[(data.lora_rank == rank) & (data.seq_len == length)]
        assert np.median(drawn) == pytest.approx(np.median(here), rel=0.25, abs=0.05)
        assert 0.4 < np.std(drawn) / np.std(here) < 2.5 or np.std(drawn) < 0.1
        assert drawn.min() >= data.final_loss.min() and drawn.max() <= BASE


def test_a_forecast_joins_both_laws(
    loss_fit: tuple[LawData, AveragedLaw, AveragedSamples],
) -> None:
    data, average, samples = loss_fit
    sure, lost = (
        forecast_recall(TRUE, average, samples, data, point, np.random.default_rng(0))
        for point in (DesignPoint(16, 50, 1), DesignPoint(1, 800, 1))
    )
    assert sure.exact.value > 0.9 and sure.token.low > 0.95
    assert (lost.exact.low, lost.exact.high) == (0.0, 0.0) and lost.token.high < 0.5
    drawn = run_losses(average, samples, data, DesignPoint(8, 400, 1), np.random.default_rng(5))
    between = forecast_recall(
        TRUE, average, samples, data, DesignPoint(8, 400, 1), np.random.default_rng(6)
    )
    assert between.token.value == pytest.approx(TRUE.predict(drawn, 400).token.mean(), abs=0.02)
    assert between.token.low < between.token.value < between.token.high
    assert between.to_json()["point"] == {"lora_rank": 8, "seq_len": 400, "train_steps": 1}
