"""What the law promises of its intervals and residuals, and any points at all: many fits each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import FitError
from pmlray.law import (
    CeilingLaw,
    LawData,
    PowerLaw,
    average_laws,
    bootstrap_law,
    fit_law,
    param_intervals,
    prediction_interval,
)
from pmlray.law.correlation import param_correlations
from pmlray.law.residuals import residual_structure
from pmlray.types import DesignPoint
from tests.unit.law.conftest import points_of
from tests.unit.law.test_law_averaging import LENGTHS, RANKS

__all__ = ["points_of"]
pytestmark = pytest.mark.slow

POWER = PowerLaw(238.0, 0.66, 0.56, -0.38)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)


def covered(law, points_of, rng, n_clusters=None, repeats=60) -> np.ndarray:
    """Share of repeats whose 90% interval holds the truth: alpha, beta, a far prediction."""
    hits = []
    base = law.base_loss if isinstance(law, CeilingLaw) else np.nan
    for _ in range(repeats):
        if n_clusters is None:
            cluster, noise = None, 0.1 * rng.standard_normal(20)
        else:
            cluster = rng.permutation(np.arange(20) % n_clusters)
            shared = 0.1 * rng.standard_normal(n_clusters)
            noise = shared[cluster] + 0.05 * rng.standard_normal(20)
        data = points_of(law, base_loss=base, noise=noise, cluster=cluster)
        fit = average_laws(data, (law.form,)).best
        samples = bootstrap_law(data, fit, 150, rng)
        intervals = param_intervals(fit.law, samples)
        low, high = prediction_interval(fit, samples, 4, 32000, 0)
        truth = float(law.predict(4, 32000, 0))
        hits.append(
            [
                intervals["rank_exponent"][0] <= law.rank_exponent <= intervals["rank_exponent"][1],
                intervals["len_exponent"][0] <= law.len_exponent <= intervals["len_exponent"][1],
                low <= truth <= high,
            ]
        )
    return np.mean(hits, axis=0)


@pytest.mark.parametrize("law", [POWER, CEILING], ids=["power", "ceiling"])
@pytest.mark.parametrize("n_clusters", [None, 5])
def test_ninety_percent_intervals_hold_the_truth_about_ninety_percent_of_the_time(
    points_of, law, n_clusters
):
    shares = covered(law, points_of, np.random.default_rng(7), n_clusters)
    # 60 repeats at 0.9: a standard error of 0.04, so 3 of them below. An interval half as wide as
    # it should be would cover 0.59, one 30% too narrow 0.75.
    assert np.all(shares >= 0.78), shares


def test_a_run_falls_into_its_interval_nine_times_in_ten() -> None:
    """New noisy runs of the true law, beyond the points; the law's own interval is narrower."""
    law = CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 12.0)
    r, n = (x.ravel().astype(float) for x in np.meshgrid(RANKS, LENGTHS))
    t, base, rng = np.full(r.size, 100.0), np.full(r.size, 12.0), np.random.default_rng(3)
    far = ([4.0, 32.0], [1600.0, 1600.0], [100.0, 100.0])
    inside, narrower = [], []
    for _ in range(60):
        delta = law.predict(r, n, t) + 0.2 * rng.standard_normal(r.size)
        data = LawData(r, n, t, delta, base, base - delta, np.arange(r.size))
        samples = average_laws(data, ("ceiling",)).sample(data, 150, rng)
        low, high = samples.run_interval(*far, rng)
        new = law.predict(*far) + 0.2 * rng.standard_normal((20, 2))
        inside.append(np.mean((low <= new) & (new <= high)))
        law_low, law_high = samples.interval(*far)
        narrower.append(np.all(high - low > law_high - law_low))
    # The noise level is estimated from 25 points: 60 repeats leave a standard error of 0.012.
    assert 0.86 <= np.mean(inside) <= 0.94
    assert all(narrower)


def test_correlations_are_those_of_many_refits(points_of):
    rng = np.random.default_rng(8)
    fits = [
        average_laws(points_of(POWER, noise=0.1 * rng.standard_normal(20)), ("power",)).best
        for _ in range(400)
    ]
    expected = np.corrcoef(np.array([f.law.params for f in fits]).T)
    found = np.mean([param_correlations(f) for f in fits], axis=0)
    # 400 refits know a correlation of 0 to 0.05 and one near 1 far better.
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_right_laws_rarely_seem_to_miss_a_structure(points_of):
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(400):
        right = points_of(POWER, noise=0.1 * rng.standard_normal(20))
        alarms += bool(residual_structure(right, average_laws(right, ("power",)).best).left)
    # At most 5 % by Bonferroni; 400 repeats have a standard error of 1.1 %.
    assert alarms <= 0.083 * 400


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 14),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
    varies_steps=st.booleans(),
)
def test_any_points_give_a_finite_summary_or_a_fit_error(n, seed, noise, varies_steps):
    rng = np.random.default_rng(seed)
    r, length = 2.0 ** rng.integers(0, 8, n), rng.choice([50.0, 1000.0, 8000.0], n)
    t = rng.choice([500.0, 1000.0], n) if varies_steps else np.zeros(n)
    delta = rng.choice([0.0, 1.0]) * CEILING.predict(r, length, t) + noise * rng.normal(size=n)
    base = np.full(n, 12.4)
    data = LawData(r, length, t, delta, base, base - delta, rng.integers(0, 4, n))
    fit = average_laws(
        data, ("ceiling",)
    ).best  # The ceiling form fits anything, even nothing learned.
    assert np.all(np.isfinite(fit.cov))
    try:
        summary = fit_law(data, n_bootstrap=20, rng=rng, targets=[DesignPoint(64, 8000, 1000)])
    except FitError:
        return
    json.dumps(summary.to_json(), allow_nan=False)
