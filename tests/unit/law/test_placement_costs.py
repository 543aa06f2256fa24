"""Costs that runs measured at several placements, against closed forms and known truths."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pmlray.law import Placement, Site
from pmlray.law.placement_costs import COST_SPREAD, SPREAD_PACKS, prose_cost, seconds_cost
from pmlray.types import DesignPoint, Observation, PlannedRun
from tests.fakes import observe

# The first two train from one layer on, so that their runs share packs.
LOW, LOW_TOO, HIGH = (
    Placement(name, (Site("attention", depth, 10.0),))
    for name, depth in (("low", 0.2), ("low too", 0.2), ("high", 0.9))
)
PLACES = (LOW, LOW_TOO, HIGH)
N = 20_000
RANKS = np.full(N, 4.0)


def run(
    pack: int, length: int, seconds: float, *, rank: int = 2, stored: float = 4.0, harm: float = 0.0
) -> Observation:
    """A run of 100 steps, of which each costs `seconds`."""
    planned = PlannedRun(DesignPoint(rank, length, 100), "sft", 0, 0, "law", f"{pack:x}{length:x}")
    o = observe(planned, pack, 0, 0.0, 1e-3)
    return replace(
        o,
        gpu_seconds=100 * seconds,
        charged_steps=100.0,
        base_loss=9.0,
        final_loss=9.0 - stored,
        prose_delta_loss=-harm,
    )


def packs(per_token: list[tuple[Placement, float]], copies: int = 1):
    """Packs of `copies` times two lengths, whose runs split its time by their tokens."""
    return [
        (run(pack, length, rate * length), placement)
        for pack, (placement, rate) in enumerate(per_token)
        for length in (50, 100) * copies
    ]


def test_a_pack_is_one_measurement_of_gpu_seconds_however_many_runs_it_has() -> None:
    rates = [(LOW, 1.0), (LOW, 1.2), (LOW_TOO, 1.1), (HIGH, 0.4), (HIGH, 0.5)]
    at = seconds_cost(packs(rates), PLACES, N)
    assert at is not None
    logs = np.log([rate for _, rate in rates])
    low, high = logs[:3], logs[3:]
    rss = float(((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum())
    free = SPREAD_PACKS + 3
    sigma = math.sqrt((rss + SPREAD_PACKS * COST_SPREAD**2) / free)
    told = np.log(at(200, 10, 1.0)(HIGH, RANKS) / (10 * 200))
    assert np.median(told) == pytest.approx(high.mean(), abs=0.01)
    # A level of two packs, and what the placement may differ from others beside it.
    spread = stats.t(free).std() ** 2 * sigma**2 / 2 + COST_SPREAD**2
    assert told.std() == pytest.approx(math.sqrt(spread), rel=0.05)
    # Ten times the runs in the same packs say nothing more.
    many = seconds_cost(packs(rates, 10), PLACES, N)
    assert many is not None
    assert many(200, 10, 1.0)(HIGH, RANKS) == pytest.approx(at(200, 10, 1.0)(HIGH, RANKS))
    # Packs tell layers apart, not what is trained in one pack.
    assert np.mean(at(200, 10, 1.0)(HIGH, RANKS) < at(200, 10, 1.0)(LOW, RANKS)) > 0.97
    level = np.mean(at(200, 10, 1.0)(LOW_TOO, RANKS) < at(200, 10, 1.0)(LOW, RANKS))
    assert level == pytest.approx(0.5, abs=0.02)


def test_a_step_costs_by_its_tokens_or_by_a_model_of_its_work() -> None:
    whole = packs([(LOW, 1.0), (HIGH, 1.0)])
    batch = [(replace(o, gpu_seconds=300.0), placement) for o, placement in whole]
    for runs, twice in ((whole, 2.0), (batch, 1.0)):
        at = seconds_cost(runs, (LOW, HIGH), N)
        assert at is not None
        longer = at(400, 10, 1.0)(LOW, RANKS) / at(200, 10, 1.0)(LOW, RANKS)
        assert longer == pytest.approx(np.full(N, twice))
    by_rank = seconds_cost(whole, (LOW, HIGH), N, lambda placement, rank, seq_len: rank * seq_len)
    assert by_rank is not None
    told = by_rank(200, 10, 1.0)(LOW, np.array([1.0] * (N // 2) + [3.0] * (N // 2)))
    assert np.median(told[N // 2 :]) / np.median(told[: N // 2]) == pytest.approx(3.0, rel=0.02)
    # Runs of rank 2 at one gpu_second a token.
    assert np.median(told[N // 2 :]) == pytest.approx(10 * 200 * 1.5, rel=0.02)


def test_gpu_seconds_that_were_not_measured_are_none() -> None:
    runs = packs([(LOW, 1.0)])
    assert seconds_cost(runs, PLACES, 5) is None
    assert seconds_cost([(replace(o, gpu_seconds=0.0), p) for o, p in runs], (LOW,), 5) is None
    free = [(replace(o, point=replace(o.point, train_steps=0)), p) for o, p in runs]
    assert seconds_cost(free, (LOW,), 5) is None


def test_harm_is_least_squares_on_what_is_stored_with_students_interval() -> None:
    rng = np.random.default_rng(3)
    lengths = np.array([100, 200, 300, 400, 500, 600, 700, 100, 900, 250])
    place = np.array([0, 1] * 5)
    x = np.log(4.0 * lengths / 3000.0)
    harm = np.array([0.5, 0.2])[place] + 0.1 * x + 0.05 * rng.standard_normal(10)
    runs = [
        (run(i, int(length), 1.0, harm=float(h)), (LOW, HIGH)[k])
        for i, (length, h, k) in enumerate(zip(lengths, harm, place, strict=True))
    ]
    at = prose_cost(runs, (LOW, HIGH), 40_000)
    assert at is not None
    # 3,000 nats in all, whatever the rank and the steps.
    told = [at(750, 1, 4.0)(placement, np.ones(40_000)) for placement in (LOW, HIGH)]
    design = np.column_stack([place == 0, place == 1, x]).astype(float)
    beta, rss, *_ = np.linalg.lstsq(design, harm)
    cov = float(rss[0]) / 7 * np.linalg.inv(design.T @ design)
    for k in range(2):
        expected = stats.t(7, beta[k], math.sqrt(cov[k, k])).ppf([0.05, 0.5, 0.95])
        assert np.quantile(told[k], [0.05, 0.5, 0.95]) == pytest.approx(expected, abs=0.004)
    apart = stats.t(7, beta[0] - beta[1], math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]))
    assert np.quantile(told[0] - told[1], 0.05) == pytest.approx(apart.ppf(0.05), abs=0.006)


def test_runs_of_one_size_leave_the_slope_out_and_too_few_tell_nothing() -> None:
    same = [
        (run(i, 400, 1.0, harm=harm), placement)
        for i, (placement, harm) in enumerate(
            [(LOW, 0.51), (LOW, 0.49), (HIGH, 0.22), (HIGH, 0.18)]
        )
    ]
    at = prose_cost(same, (LOW, HIGH), N)
    assert at is not None
    apart = at(400, 1, 4.0)(LOW, RANKS) - at(400, 1, 4.0)(HIGH, RANKS)
    assert np.median(apart) == pytest.approx(0.3, abs=0.005)
    assert prose_cost([same[0], same[2]], (LOW, HIGH), 5) is None
    assert prose_cost(same, PLACES, 5) is None
