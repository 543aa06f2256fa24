"""The bootstrap: coverage, clusters, early data, and intervals of what is derived."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from pmlray.law import (
    CeilingLaw,
    FitStatus,
    PowerLaw,
    bootstrap_law,
    derived_interval,
    fit_law,
    param_intervals,
    prediction_interval,
    read_law_data,
)

POWER = PowerLaw(238.0, 0.66, 0.56, -0.38)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)


def test_the_interval_is_as_wide_as_the_spread_of_independent_fits(points_of):
    rng = np.random.default_rng(11)
    fitted, widths = [], []
    for _ in range(100):
        data = points_of(POWER, noise=0.1 * rng.standard_normal(20))
        fit = fit_law(data, "power")
        fitted.append(fit.law.rank_exponent)
        low, high = param_intervals(fit.law, bootstrap_law(data, fit, 100, rng))["rank_exponent"]
        widths.append(high - low)
    low, high = np.quantile(fitted, [0.05, 0.95])
    # Quantiles of 100 fits are known to about 10%; HC3 residuals make it somewhat wider.
    assert 0.8 < np.median(widths) / (high - low) < 1.6


def test_errors_shared_within_a_sequence_widen_the_interval(points_of):
    """The same residuals: once as independent points, once as four sequences."""
    rng = np.random.default_rng(2)
    cluster = np.arange(20) // 5  # A sequence of its own for each pair of neighbouring ranks.
    noise = 0.3 * rng.standard_normal(4)[cluster] + 0.01 * rng.standard_normal(20)
    alone = points_of(POWER, noise=noise)
    together = points_of(POWER, noise=noise, cluster=cluster)
    fit = fit_law(alone, "power")

    def width(data):
        samples = bootstrap_law(data, fit, 400, np.random.default_rng(0))
        low, high = prediction_interval(fit, samples, 16, 8000, 0)
        return float(high - low)

    assert width(together) > 1.3 * width(alone)


def test_one_sequence_gets_the_intervals_of_independent_points(points_of):
    noise = 0.1 * np.random.default_rng(2).standard_normal(20)
    one = points_of(POWER, noise=noise, cluster=np.zeros(20, dtype=int))
    many = points_of(POWER, noise=noise)
    fit = fit_law(one, "power")
    np.testing.assert_array_equal(
        bootstrap_law(one, fit, 20, np.random.default_rng(0)),
        bootstrap_law(many, fit, 20, np.random.default_rng(0)),
    )


@pytest.mark.parametrize("law", [POWER, CEILING], ids=["power", "ceiling"])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_early_intervals_are_wide_and_hold_the_truth(points_of, law, n):
    base = law.base_loss if isinstance(law, CeilingLaw) else np.nan
    whole = points_of(law, base_loss=base)
    first = whole.subset(np.array([0, 18, 7, 13, 2])[:n])
    fit = fit_law(first, law.form)
    if n < 5 or law is CEILING:
        assert fit.status is FitStatus.UNDERDETERMINED
    samples = bootstrap_law(first, fit, 200, np.random.default_rng(0))
    assert len(samples) >= 100
    assert np.all(np.isfinite(samples))
    if n == 1:
        low, high = prediction_interval(fit, samples, 16, 8000, 0)
        truth = float(law.predict(16, 8000, 0))
        assert low < truth < high
        assert high - low > 0.2 * truth


def test_exact_points_give_intervals_of_no_width(points_of):
    data = points_of(POWER)
    fit = fit_law(data, "power")
    samples = bootstrap_law(data, fit, 50, np.random.default_rng(0))
    np.testing.assert_allclose(samples, np.tile(POWER.params, (50, 1)), rtol=1e-6)


def test_intervals_are_of_the_named_parameters_and_nest_with_level(paper_csv):
    data = read_law_data(paper_csv, 12.4)
    fit = fit_law(data, "ceiling")
    samples = bootstrap_law(data, fit, 200, np.random.default_rng(0))
    wide, narrow = (param_intervals(fit.law, samples, level) for level in (0.95, 0.5))
    assert set(wide) == {"coef", "rank_exponent", "len_exponent", "offset", "sharpness"}
    for name, (low, high) in wide.items():
        assert low < narrow[name][0] < narrow[name][1] < high
        assert low < getattr(fit.law, name) < high
    # paper.md 0.3 gives alpha .88 +- .03 and beta .76 +- .02, standard errors of about one third
    # to one half of the 90% half-widths.
    assert 0.03 < wide["rank_exponent"][1] - wide["rank_exponent"][0] < 0.2


def test_derived_intervals_carry_through_and_may_be_unbounded(paper_csv):
    data = read_law_data(paper_csv, 12.4)
    fit = fit_law(data, "ceiling")
    samples = bootstrap_law(data, fit, 200, np.random.default_rng(0))
    low, high = derived_interval(fit, samples, lambda law: law.invert_rank(10000, 0, 8.0))
    assert 10 < low < fit.law.invert_rank(10000, 0, 8.0) < high < 25
    never = derived_interval(fit, samples, lambda law: law.invert_rank(10000, 0, 12.5))
    assert never == (math.inf, math.inf)


def test_the_same_generator_gives_the_same_samples(paper_csv):
    data = read_law_data(paper_csv, 12.4)
    fit = fit_law(data, "power")
    one, other = (bootstrap_law(data, fit, 10, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("form", "limit"), [("power", 0.6), ("ceiling", 1.5)])
def test_two_hundred_refits_of_twenty_points_are_quick(paper_csv, form, limit):
    data = read_law_data(paper_csv, 12.4).subset(np.arange(1, 61, 3))
    fit = fit_law(data, form)
    began = time.process_time()
    bootstrap_law(data, fit, 200, np.random.default_rng(0))
    # About 20 ms here; the limit is what a search can spend after each result.
    assert time.process_time() - began < limit


@pytest.mark.parametrize("form", ["power", "ceiling"])
def test_a_thousand_refits_of_the_papers_points_take_under_two_seconds(paper_csv, form):
    data = read_law_data(paper_csv, 12.4)
    fit = fit_law(data, form)
    began = time.process_time()
    samples = bootstrap_law(data, fit, 1000, np.random.default_rng(0))
    # Time of this process alone: what one core takes, whatever else the machine does.
    assert time.process_time() - began < 2.0
    assert samples.shape == (1000, fit.law.params.size)
