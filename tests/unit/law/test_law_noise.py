"""Noise that follows delta_loss: against the whole likelihood, and what it does for a law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from pmlray.law import (
    AveragedLaw,
    FitOptions,
    LawData,
    PowerLaw,
    average_laws,
    bootstrap_law,
    fit_law,
)

TRUTH = PowerLaw(20.0, 0.6, 0.5, 0.2)
BY_VALUE = FitOptions(noise="by_value")


def points(power: float, seed: int = 0, size: float = 0.03) -> LawData:
    """70 points whose noise is size |delta_loss|^power nats."""
    grid = np.meshgrid((1, 2, 4, 8, 16, 32, 64), (64, 128, 256, 512, 1024, 2048, 4096, 6000))
    r, n = (x.ravel().astype(float) for x in grid)
    mean = TRUTH.predict(r, n, 0)
    noise = size * np.abs(mean) ** power * np.random.default_rng(seed).standard_normal(r.size)
    unknown = np.full(r.size, np.nan)
    return LawData(r, n, 0 * r, mean + noise, unknown, unknown, np.arange(r.size))


@pytest.mark.parametrize("power", [1.0, 0.5, -0.8])
def test_power_and_law_maximise_the_likelihood_together(power: float) -> None:
    data = points(power)
    fit = fit_law(data, "power", options=BY_VALUE)
    assert fit.noise.power == pytest.approx(power, abs=0.35)

    def negative_log_likelihood(x: np.ndarray) -> float:
        mean = fit.law.with_params(x[:4]).predict(data.lora_rank, data.seq_len, 0)
        sd = np.exp(x[4]) * np.abs(mean / fit.noise.ref) ** x[5]
        return -float(np.sum(norm.logpdf(data.delta_loss, mean, sd)))

    # Weights are held while the law moves, so each of the two is likeliest given the other.
    at = np.array([*fit.law.params, np.log(fit.sigma), fit.noise.power])
    of_noise = minimize(
        lambda x: negative_log_likelihood(np.array([*at[:4], *x])), at[4:], method="Nelder-Mead"
    )
    assert of_noise.x[1] == pytest.approx(fit.noise.power, abs=1e-3)
    # The maximum divides by the number of points, the fit by the spare ones.
    n = len(data)
    assert np.exp(of_noise.x[0]) == pytest.approx(fit.sigma * np.sqrt((n - 4) / n), rel=1e-3)
    sd = fit.noise.sd(fit.law.predict(data.lora_rank, data.seq_len, 0))

    def weighted(params: np.ndarray) -> float:
        mean = fit.law.with_params(params).predict(data.lora_rank, data.seq_len, 0)
        return float(np.sum(((data.delta_loss - mean) / sd) ** 2))

    found = minimize(weighted, fit.law.params, method="Nelder-Mead", options={"maxiter": 4000})
    assert weighted(fit.law.params) <= found.fun + 1e-6


def test_equal_noise_is_kept_unless_it_is_refused() -> None:
    refused = [
        fit_law(points(0.0, s), "power", options=BY_VALUE).noise.power != 0 for s in range(60)
    ]
    assert np.mean(refused) < 0.2
    kept = refused.index(False)
    plain, fit = (fit_law(points(0.0, kept), "power", options=o) for o in (None, BY_VALUE))
    np.testing.assert_array_equal(plain.law.params, fit.law.params)
    assert all(
        fit_law(points(1.0, s), "power", options=BY_VALUE).noise.power > 0.5 for s in range(20)
    )


def test_weights_by_noise_bring_the_law_nearer_and_narrow_its_intervals() -> None:
    errors: dict[str, list[float]] = {"equal": [], "by_value": []}
    widths: dict[str, list[float]] = {"equal": [], "by_value": []}
    for seed in range(20):
        data = points(1.0, seed)
        for noise in ("equal", "by_value"):
            fit = fit_law(data, "power", options=FitOptions(noise=noise))
            samples = bootstrap_law(data, fit, 60, np.random.default_rng(seed))
            errors[noise].append((fit.law.rank_exponent - TRUTH.rank_exponent) ** 2)
            widths[noise].append(float(np.std(samples[:, 1])))
    assert np.mean(errors["by_value"]) < 0.6 * np.mean(errors["equal"])
    assert np.mean(widths["by_value"]) < 0.8 * np.mean(widths["equal"])


def test_interval_of_a_run_is_as_wide_as_the_noise_there() -> None:
    data = points(1.0, size=0.05)
    fit = fit_law(data, "power", options=BY_VALUE)
    rng = np.random.default_rng(0)
    samples = AveragedLaw((fit,), (1.0,)).sample(data, 200, rng)
    low, high = samples.run_interval([2.0, 64.0], [4096.0, 128.0], [0.0, 0.0], rng)
    expected = 2 * 1.645 * 0.05 * TRUTH.predict([2.0, 64.0], [4096.0, 128.0], 0)
    np.testing.assert_allclose(high - low, expected, rtol=0.35)
    # One noise for all points would be off by far more.
    assert (high - low)[1] > 10 * (high - low)[0]


def test_options_reach_the_fits_without_the_held_out_points() -> None:
    """An outlier among the small points bends the plain fit that predicts the large ones."""
    data = points(0.0)
    spoilt = data.delta_loss.copy()
    spoilt[np.flatnonzero((data.lora_rank == 32) & (data.seq_len == 64))] += 15.0
    bad = LawData(
        data.lora_rank, data.seq_len, data.train_steps, spoilt,
        np.full(len(data), 80.0), 80.0 - spoilt, data.cluster,
    )  # fmt: skip
    for options, power_wins in ((None, False), (FitOptions(loss="huber"), True)):
        average = average_laws(bad, ("power", "ceiling"), options)
        assert all(fit.options == (options or FitOptions()) for fit in average.fits)
        error = abs(average.predict(64, 6000, 0) - TRUTH.predict(64, 6000, 0))
        assert (error < 0.1) == power_wins
