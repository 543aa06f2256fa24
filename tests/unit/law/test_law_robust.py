"""Huber's loss and censoring against independent maximisation; the forms against their truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from pmlray.law import (
    BrokenLaw,
    CeilingLaw,
    ExponentialCeilingLaw,
    FitOptions,
    FitStatus,
    Form,
    Law,
    LawData,
    PowerLaw,
    fit_law,
)
from pmlray.law.diagnostics import extrapolation_errors, heldout_errors

RANKS, LENGTHS = (1, 2, 4, 8, 16, 32), (50, 100, 200, 400, 800)
BASE = 12.0


def points(law: Law, noise: float = 0.0, seed: int = 0, cap: bool = False) -> LawData:
    r, n = (x.ravel().astype(float) for x in np.meshgrid(RANKS, LENGTHS))
    t = np.full(r.size, 100.0)
    delta = law.predict(r, n, t) + noise * np.random.default_rng(seed).standard_normal(r.size)
    if cap:
        # A loss of 0.5 nats is where the runs stop.
        delta = np.minimum(delta, BASE - 0.5)
    base = np.full(r.size, BASE)
    return LawData(r, n, t, delta, base, base - delta, np.arange(r.size))


@pytest.mark.parametrize(
    "truth",
    [
        BrokenLaw(20.0, 0.8, 0.5, 0.2, 0.5, 6.0),
        ExponentialCeilingLaw(60.0, 0.8, 0.6, 0.3, BASE),
        CeilingLaw(60.0, 0.8, 0.6, 0.3, 4.0, BASE),
    ],
    ids=lambda law: law.form,
)
def test_every_form_recovers_its_own_truth(truth: Law) -> None:
    data = points(truth)
    data = data.subset(data.delta_loss < 0.999 * BASE)
    unfiltered = LawData(
        data.lora_rank, data.seq_len, data.train_steps, data.delta_loss,
        np.full(len(data), BASE), np.full(len(data), 5.0), data.cluster,
    )  # fmt: skip
    fit = fit_law(unfiltered, truth.form)
    assert fit.status is FitStatus.CONVERGED, fit.message
    np.testing.assert_allclose(fit.law.params, truth.params, rtol=1e-4)


def test_outliers_bend_least_squares_and_not_huber() -> None:
    truth = PowerLaw(15.0, 0.4, 0.5, 0.1)
    data = points(truth, noise=0.03)
    spoilt = data.delta_loss.copy()
    spoilt[[3, 17]] += [4.0, -1.2]
    bad = LawData(
        data.lora_rank, data.seq_len, data.train_steps, spoilt,
        data.base_loss, data.base_loss - spoilt, data.cluster,
    )  # fmt: skip
    plain, huber = (
        fit_law(bad, "power", options=FitOptions(loss=loss))  # type: ignore[arg-type]
        for loss in ("gaussian", "huber")
    )
    error = [np.abs(f.law.params - truth.params).max() for f in (plain, huber)]
    assert error[1] < 0.2 * error[0]
    assert huber.sigma == pytest.approx(0.03, rel=0.5)
    assert set(np.flatnonzero(huber.weights < 0.2)) == {3, 17}


def test_huber_minimises_its_own_loss() -> None:
    """Against a general minimiser of the Huber loss at the noise level that the fit settled on."""
    data = points(PowerLaw(15.0, 0.4, 0.5, 0.1), noise=0.2, seed=3)
    fit = fit_law(data, "power", options=FitOptions(loss="huber"))

    def loss(params: np.ndarray) -> float:
        law = fit.law.with_params(params)
        u = np.abs(data.delta_loss - law.predict(data.lora_rank, data.seq_len, 0)) / fit.sigma
        return float(np.sum(np.where(u <= 1.345, 0.5 * u**2, 1.345 * u - 0.5 * 1.345**2)))

    found = minimize(loss, fit.law.params, method="Nelder-Mead", options={"maxiter": 4000})
    assert loss(fit.law.params) <= found.fun + 1e-6


def test_censoring_maximises_the_tobit_likelihood() -> None:
    data = points(PowerLaw(40.0, 0.6, 0.5, 0.1), noise=0.2, cap=True)
    censored = data.final_loss <= math.log(2)
    assert 4 < censored.sum() < 15
    fit = fit_law(data, "power", options=FitOptions(saturated="censor"))
    assert fit.n_censored == censored.sum() and fit.n_obs == len(data)

    def negative_log_likelihood(params: np.ndarray) -> float:
        mean = fit.law.with_params(params).predict(data.lora_rank, data.seq_len, 0)
        z = (data.delta_loss - mean) / fit.sigma
        return -float(np.sum(np.where(censored, norm.logsf(z), norm.logpdf(z))))

    found = minimize(
        negative_log_likelihood, fit.law.params, method="Nelder-Mead",
        options={"maxiter": 8000, "xatol": 1e-8, "fatol": 1e-10},
    )  # fmt: skip
    assert negative_log_likelihood(fit.law.params) == pytest.approx(found.fun, abs=1e-3)


def test_censoring_removes_the_bias_of_believing_saturated_points() -> None:
    truth = PowerLaw(40.0, 0.6, 0.5, 0.1)
    errors: dict[str, list[float]] = {"believed": [], "censored": []}
    for seed in range(20):
        data = points(truth, noise=0.2, seed=seed, cap=True)
        believed = LawData(
            data.lora_rank, data.seq_len, data.train_steps, data.delta_loss,
            np.full(len(data), np.nan), np.full(len(data), np.nan), data.cluster,
        )  # fmt: skip
        fits = {
            "believed": fit_law(believed, "power"),
            "censored": fit_law(data, "power", options=FitOptions(saturated="censor")),
        }
        for name, fit in fits.items():
            errors[name].append(fit.law.rank_exponent - truth.rank_exponent)
    assert abs(np.mean(errors["believed"])) > 0.1
    assert abs(np.mean(errors["censored"])) < 0.02


def test_lower_bounds_are_never_an_error_and_still_bear_on_held_out_ones() -> None:
    """What was only bounded cannot be missed; what is left out is predicted by an honest refit."""
    data = points(PowerLaw(40.0, 0.6, 0.5, 0.1), noise=0.05, cap=True)
    options = FitOptions(saturated="censor")
    censored = data.final_loss <= math.log(2)
    fit = fit_law(data, "power", options=options)
    errors = heldout_errors(data, fit)
    assert np.array_equal(np.isnan(errors), censored)
    beyond = np.concatenate(extrapolation_errors(data, "power", options=options))
    assert np.all(np.isnan(beyond[np.concatenate([censored, censored])]))
    assert np.isfinite(beyond).any()
    for i in np.flatnonzero(~censored)[:3].tolist():
        law = fit_law(data.subset(np.arange(len(data)) != i), "power", options=options).law
        predicted = law.predict(data.lora_rank[i], data.seq_len[i], data.train_steps[i])
        expected = abs(predicted - data.delta_loss[i]) / data.delta_loss[i]
        assert errors[i] == pytest.approx(float(expected), abs=2e-3)


@pytest.mark.parametrize(
    ("keep", "form", "advice"),
    [
        (lambda d: d.lora_rank == 4, "power", "a second lora_rank"),
        (lambda d: d.seq_len == 100, "ceiling", "a second seq_len"),
        (lambda d: (d.lora_rank > 4) & (d.seq_len < 250), "ceiling", "away from saturation"),
    ],
)
def test_an_open_law_says_what_to_measure_next(keep, form: Form, advice: str) -> None:
    data = points(CeilingLaw(60.0, 0.8, 0.6, 0.3, 4.0, BASE), noise=0.02)
    fit = fit_law(data.subset(keep(data)), form)
    assert fit.status is FitStatus.UNDERDETERMINED
    assert "measure next" in fit.message and advice in fit.message


def test_conditioning_and_unidentified_parameters_are_reported() -> None:
    good = fit_law(points(PowerLaw(15.0, 0.4, 0.5, 0.1), noise=0.02), "power")
    assert good.unidentified == () and 1 <= good.condition_number < 1e6
    # Over a factor of two in length an exponent and an offset cannot be told apart.
    near = points(PowerLaw(15.0, 0.4, 0.5, 0.1), noise=0.3)
    near = fit_law(near.subset((near.seq_len <= 100) & (near.lora_rank <= 4)), "power")
    assert near.unidentified and near.condition_number > good.condition_number
    assert all(name in near.law.param_names for name in near.unidentified)
