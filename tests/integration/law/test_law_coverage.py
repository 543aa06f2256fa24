"""What the law promises of its intervals and residuals, and any points at all: many fits each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import FitError
from pmlray.law import CeilingLaw, Law, LawData, PowerLaw, average_laws, fit_law
from pmlray.law.validation.correlation import param_correlations
from pmlray.law.validation.residuals import residual_structure
from pmlray.types import DesignPoint
from tests.unit.law.conftest import PointsOf, points_of

__all__ = ["points_of"]
pytestmark = pytest.mark.slow

POWER = PowerLaw(238.0, 0.66, 0.56, 0.8)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
# Beyond the longest text, the lowest rank among them, and the corner: ranks, lengths, steps.
TARGETS = ([4.0, 2.0, 8.0, 16.0], [32000.0, 16000.0, 12000.0, 8000.0], [0.0, 0.0, 0.0, 0.0])
REPEATS = 40


def noise_of(law: Law, delta: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """8 % of what is memorised, less as it saturates."""
    base = law.base_loss if isinstance(law, CeilingLaw) else np.inf
    left = (1.0 - np.clip(delta / base, 0.0, 1.0) ** 6) ** (7 / 6)
    return 0.08 * (delta - law.offset) * left * normal


@pytest.mark.parametrize("law", [POWER, CEILING], ids=["power", "ceiling"])
@pytest.mark.parametrize("n_texts", [None, 5])
def test_intervals_hold_the_law_and_runs_as_often_as_they_say(
    points_of: PointsOf, law: Law, n_texts: int | None
) -> None:
    rng = np.random.default_rng(7)
    base = law.base_loss if isinstance(law, CeilingLaw) else np.nan
    exact = points_of(law, base_loss=base)
    truth = law.predict(*TARGETS)
    held, of_runs, widths = [], [], []
    for _ in range(REPEATS):
        cluster, normal = np.arange(20), rng.standard_normal(20)
        if n_texts is not None:
            # A fifth of the variance is the text's.
            cluster = rng.permutation(np.arange(20) % n_texts)
            of_text = rng.standard_normal(n_texts)[cluster]
            normal = np.sqrt(0.2) * of_text + np.sqrt(0.8) * normal
        noise = noise_of(law, exact.delta_loss, normal)
        data = points_of(law, base_loss=base, noise=noise, cluster=cluster)
        samples = average_laws(data).sample(100, rng)
        low, high = samples.interval(*TARGETS)
        held.append((low <= truth) & (truth <= high))
        widths.append((high - low) / truth)
        run_low, run_high = samples.run_interval(*TARGETS, rng)
        runs = truth + noise_of(law, truth, rng.standard_normal((20, 4)))
        of_runs.append(np.mean((run_low <= runs) & (runs <= run_high)))
        assert np.all(run_high - run_low > 0.99 * (high - low))
    # The targets of a repeat err together: 40 repeats at 0.93 have a standard error of 0.025.
    assert np.mean(held) >= 0.85, np.mean(held, axis=0)
    # Intervals of any width would do so too.
    assert np.median(widths) < 0.4
    assert 0.85 <= np.mean(of_runs) <= 0.99


def test_correlations_are_those_of_what_is_believed(points_of: PointsOf) -> None:
    noise = 0.1 * np.random.default_rng(8).standard_normal(20)
    average = average_laws(points_of(POWER, noise=noise), ("power",))
    [part] = average.sample(2000, np.random.default_rng(0)).parts
    at_the_likeliest = part.params[part.sigma == average.best.sigma]
    expected = np.corrcoef(at_the_likeliest.T)
    found = param_correlations(average.best)
    assert len(at_the_likeliest) > 300
    # So many samples know a correlation of 0 to 0.06; the rest is the model's curvature.
    np.testing.assert_allclose(found, expected, atol=0.2)


def test_right_laws_rarely_seem_to_miss_a_structure(points_of: PointsOf) -> None:
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        right = points_of(POWER, noise=0.1 * rng.standard_normal(20))
        fit = average_laws(right, ("power",)).best
        alarms += bool(residual_structure(right, fit).left)
    # At most 5 % by Bonferroni; 200 repeats have a standard error of 1.5 %.
    assert alarms <= 0.095 * 200


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 14),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
    varies_steps=st.booleans(),
)
def test_any_points_give_a_finite_summary_or_a_fit_error(
    n: int, seed: int, noise: float, varies_steps: bool
) -> None:
    rng = np.random.default_rng(seed)
    r, length = 2.0 ** rng.integers(0, 8, n), rng.choice([50.0, 1000.0, 8000.0], n)
    t = rng.choice([500.0, 1000.0], n) if varies_steps else np.zeros(n)
    delta = rng.choice([0.0, 1.0]) * CEILING.predict(r, length, t) + noise * rng.normal(size=n)
    base = np.full(n, 12.4)
    data = LawData(r, length, t, delta, base, base - delta, rng.integers(0, 4, n))
    # A form with a ceiling fits anything, even nothing learnt.
    assert np.all(np.isfinite(average_laws(data, ("ceiling",)).best.cov))
    try:
        summary = fit_law(data, n_bootstrap=20, rng=rng, targets=[DesignPoint(64, 8000, 1000)])
    except FitError:
        return
    stored = json.dumps(summary.to_json(), allow_nan=False)
    [target] = json.loads(stored)["targets"]
    assert target["run_low"] < target["run_high"]
    # Of runs that learnt nothing no sample may be above 0, and none is believed below it.
    assert target["low"] < target["high"] or target["high"] == 0.0
