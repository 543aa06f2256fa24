"""Fits: recovery, the paper's own points, invariances, and what happens with too few points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from pmlray.errors import FitError
from pmlray.law import (
    CeilingLaw,
    FitStatus,
    LawData,
    PowerLaw,
    fit_law,
    mape,
    r2,
    read_law_data,
    usable_points,
)

LAWS = [
    PowerLaw(238.0, 0.66, 0.56, -0.38),
    PowerLaw(40.0, 0.3, 0.35, -1.0),
    PowerLaw(2.0e4, 1.4, 1.2, 0.5),
    CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4),
    CeilingLaw(300.0, 0.7, 0.65, 0.2, 2.0, 8.0),
    CeilingLaw(5000.0, 1.2, 1.0, 0.0, 15.0, 12.4),
]
BUDGET_LAWS = [
    PowerLaw(238.0, 0.66, 0.56, -0.38, 0.25, 1000.0, True),
    CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4, 0.25, 1000.0, True),
]


def base_of(law) -> float:
    return law.base_loss if isinstance(law, CeilingLaw) else np.nan


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_law_is_recovered_from_its_own_points(points_of, law):
    fit = fit_law(points_of(law, base_loss=base_of(law)), law.form)
    assert fit.status is FitStatus.CONVERGED, fit.message
    # Rounding of the points (1e-16) times the condition of the problem, at most about 1e8.
    np.testing.assert_allclose(fit.law.params, law.params, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", BUDGET_LAWS, ids=str)
def test_the_budget_exponent_is_recovered_when_steps_vary(points_of, law):
    data = points_of(law, steps=(500.0, 1000.0, 2000.0), base_loss=base_of(law))
    fit = fit_law(data, law.form)
    assert fit.law.fits_budget
    assert fit.law.budget_exponent == pytest.approx(0.25, abs=1e-6)
    # C belongs to t_ref, so laws are compared by what they predict.
    np.testing.assert_allclose(
        fit.law.predict(32, 16000, [250, 4000]), law.predict(32, 16000, [250, 4000]), rtol=1e-6
    )


def test_the_power_law_of_the_papers_points(paper_csv):
    data = read_law_data(paper_csv)
    fit = fit_law(data, "power")
    # paper.md 0.2: an independent fit of the same points.
    assert fit.law.rank_exponent == pytest.approx(0.659, abs=0.01)
    assert fit.law.len_exponent == pytest.approx(0.560, abs=0.01)
    assert fit.law.coef == pytest.approx(238, abs=2)
    assert fit.law.offset == pytest.approx(-0.38, abs=0.01)
    assert (fit.n_obs, fit.n_censored, fit.status) == (70, 0, FitStatus.CONVERGED)
    assert r2(data, fit) == pytest.approx(0.9959, abs=5e-5)
    assert mape(data, fit) == pytest.approx(0.035, abs=5e-4)
    errors = dict(zip(fit.law.param_names, np.sqrt(np.diag(fit.cov)), strict=True))
    assert errors["log_coef"] == pytest.approx(20 / 238, rel=0.05)
    assert errors["rank_exponent"] == pytest.approx(0.022, abs=1e-3)
    assert errors["len_exponent"] == pytest.approx(0.018, abs=1e-3)


def test_the_ceiling_law_of_the_papers_points(paper_csv):
    data = read_law_data(paper_csv, base_loss=12.4)
    fit = fit_law(data, "ceiling")
    assert isinstance(fit.law, CeilingLaw)
    # paper.md 0.3.
    assert fit.law.rank_exponent == pytest.approx(0.88, abs=0.005)
    assert fit.law.len_exponent == pytest.approx(0.76, abs=0.005)
    assert fit.law.offset == pytest.approx(0.60, abs=0.005)
    assert fit.law.sharpness == pytest.approx(6.5, abs=0.05)
    assert r2(data, fit) == pytest.approx(0.9990, abs=5e-5)
    assert mape(data, fit) == pytest.approx(0.011, abs=5e-4)
    assert (fit.n_obs, fit.n_censored) == (70, 0)


def test_saturated_points_are_set_aside_by_the_power_form_only(paper_csv):
    data = read_law_data(paper_csv, base_loss=12.4)
    saturated = data.delta_loss >= 12.4 - np.log(2)
    assert saturated.sum() == 1
    np.testing.assert_array_equal(usable_points(data, "power"), ~saturated)
    assert usable_points(data, "ceiling").all()
    fit = fit_law(data, "power")
    assert (fit.n_obs, fit.n_censored) == (69, 1)


@pytest.mark.parametrize("form", ["power", "ceiling"])
def test_no_other_minimiser_does_better(paper_csv, form):
    """scipy's trust-region solver in plain parameters, from scattered starts, as an oracle."""
    data = read_law_data(paper_csv, base_loss=12.4)
    data = data.subset(usable_points(data, form))
    fit = fit_law(data, form)
    rng = np.random.default_rng(1)

    def residuals(params):
        law = fit.law.with_params(params)
        return law.predict(data.lora_rank, data.seq_len, data.train_steps) - data.delta_loss

    best = min(
        least_squares(residuals, fit.law.params + rng.normal(0, 0.3, fit.law.params.size)).cost
        for _ in range(5)
    )
    assert fit.rss == pytest.approx(2 * best, rel=1e-8)


@pytest.mark.parametrize("form", ["power", "ceiling"])
def test_the_order_of_the_points_does_not_matter(paper_csv, form):
    data = read_law_data(paper_csv, base_loss=12.4)
    shuffled = data.subset(np.random.default_rng(0).permutation(len(data)))
    # The sums differ by rounding; the minimum is found to about sqrt of it.
    np.testing.assert_allclose(
        fit_law(shuffled, form).law.params, fit_law(data, form).law.params, rtol=1e-7
    )


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 10.0))
def test_losses_in_other_units_scale_the_law(points_of, scale):
    noise = 0.1 * np.random.default_rng(0).standard_normal(20)
    for law in (LAWS[0], LAWS[3]):
        data = points_of(law, base_loss=base_of(law), noise=noise)
        scaled = LawData(
            data.lora_rank,
            data.seq_len,
            data.train_steps,
            scale * data.delta_loss,
            scale * data.base_loss,
            np.full(20, np.nan),
            data.cluster,
        )
        one, other = fit_law(data, law.form).law, fit_law(scaled, law.form).law
        assert other.coef == pytest.approx(scale * one.coef, rel=1e-5)
        assert other.offset == pytest.approx(scale * one.offset, rel=1e-5, abs=1e-6)
        assert other.rank_exponent == pytest.approx(one.rank_exponent, rel=1e-6)
        assert other.len_exponent == pytest.approx(one.len_exponent, rel=1e-6)


def test_each_point_is_capped_by_its_own_base_loss(points_of):
    law = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
    data = points_of(law, base_loss=12.4)
    bases = np.where(np.arange(len(data)) % 2, 12.4, 9.0)
    delta = law.predict(data.lora_rank, data.seq_len, 0, base_loss=bases)
    mixed = LawData(
        data.lora_rank,
        data.seq_len,
        data.train_steps,
        delta,
        bases,
        bases - delta,
        data.cluster,
    )
    fit = fit_law(mixed, "ceiling")
    np.testing.assert_allclose(fit.law.params, law.params, rtol=1e-6)
    assert isinstance(fit.law, CeilingLaw)
    assert fit.law.base_loss == np.median(bases)


@pytest.mark.parametrize("form", ["power", "ceiling"])
def test_a_warm_start_reaches_the_same_law(paper_csv, form):
    data = read_law_data(paper_csv, base_loss=12.4)
    cold = fit_law(data, form)
    start = fit_law(data.subset(np.arange(0, 70, 2)), form).law
    warm = fit_law(data, form, start=start)
    np.testing.assert_allclose(warm.law.params, cold.law.params, rtol=1e-6)


def test_a_start_of_another_form_is_refused(paper_csv):
    with pytest.raises(FitError, match="a power law cannot start"):
        fit_law(read_law_data(paper_csv, 12.4), "ceiling", start=LAWS[0])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("law", [LAWS[0], LAWS[3]], ids=["power", "ceiling"])
def test_the_first_points_of_a_search_give_a_sane_law(points_of, law, n):
    whole = points_of(law, base_loss=base_of(law))
    first = whole.subset(np.array([0, 18, 7, 13, 2, 16])[:n])
    fit = fit_law(first, law.form)
    if n < law.params.size + 1:
        assert fit.status is FitStatus.UNDERDETERMINED
        assert f"{n} points for {law.params.size} parameters" in fit.message
    assert np.all(np.isfinite(fit.cov))
    assert np.linalg.eigvalsh(fit.cov).min() > -1e-12 * np.abs(fit.cov).max()
    # The prior is the paper's own exponents, near these laws', so even one point leads to the
    # right order of magnitude over the whole grid.
    truth = law.predict(whole.lora_rank, whole.seq_len, 0)
    predicted = fit.law.predict(whole.lora_rank, whole.seq_len, 0)
    assert np.median(np.abs(predicted / truth - 1)) < 0.5


@pytest.mark.parametrize(
    ("ranks", "lengths", "named"),
    [
        ((4.0,), (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0), "rank_exponent"),
        ((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (4000.0,), "len_exponent"),
    ],
)
def test_one_rank_or_one_length_is_named(points_of, ranks, lengths, named):
    fit = fit_law(points_of(LAWS[0], ranks, lengths), "power")
    assert fit.status is FitStatus.UNDERDETERMINED
    assert named in fit.message
    prior = {"rank_exponent": 0.66, "len_exponent": 0.56}[named]
    assert getattr(fit.law, named) == pytest.approx(prior, abs=0.05)


def test_rank_and_length_that_move_together_are_named(points_of):
    law = LAWS[0]
    r = np.array([1, 2, 4, 8, 16, 32.0])
    y = law.predict(r, 500 * r, 0) + 0.01 * np.array([1, -1, 1, -1, 1, -1])
    nan = np.full(6, np.nan)
    fit = fit_law(LawData(r, 500 * r, np.zeros(6), y, nan, nan, np.arange(6)), "power")
    assert fit.status is FitStatus.UNDERDETERMINED
    assert "rank_exponent" in fit.message
    assert "len_exponent" in fit.message


def test_a_sharpness_that_nothing_saturated_shows_is_held_by_the_prior(points_of):
    noise = 0.02 * np.random.default_rng(3).standard_normal(20)
    law = CeilingLaw(25.0, 0.66, 0.56, 0.1, 6.5, 12.4)
    fit = fit_law(points_of(law, base_loss=12.4, noise=noise), "ceiling")
    assert fit.status is FitStatus.UNDERDETERMINED
    assert "log_sharpness" in fit.message
    assert fit.law.rank_exponent == pytest.approx(0.66, abs=0.03)


def test_an_exponent_at_its_bound_is_named(points_of):
    law = PowerLaw(50.0, 0.0, 0.5, 0.1)
    noise = -0.01 * np.log(points_of(law).lora_rank)
    fit = fit_law(points_of(law, noise=noise), "power")
    assert fit.status is FitStatus.BOUND_HIT
    assert "rank_exponent" in fit.message
    assert fit.law.rank_exponent == 0.0


def test_where_nothing_can_be_fitted_the_error_says_what_to_do(points_of, paper_csv):
    with pytest.raises(FitError, match="--base-loss"):
        fit_law(read_law_data(paper_csv), "ceiling")
    saturated = points_of(CeilingLaw(1e6, 1.0, 0.5, 0.0, 8.0, 12.0), base_loss=12.0)
    with pytest.raises(FitError, match="all 20 points have final_loss"):
        fit_law(saturated, "power")
    upside_down = points_of(LAWS[0])
    turned = LawData(
        upside_down.lora_rank,
        upside_down.seq_len,
        upside_down.train_steps,
        -upside_down.delta_loss,
        upside_down.base_loss,
        upside_down.final_loss,
        upside_down.cluster,
    )
    with pytest.raises(FitError, match="does not grow with rank"):
        fit_law(turned, "power")
    with pytest.raises(FitError, match="no points"):
        fit_law(upside_down.subset(np.zeros(20, dtype=bool)), "power")
