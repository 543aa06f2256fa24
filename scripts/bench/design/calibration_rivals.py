"""What else would give intervals to the same runs, for calibration.py."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import scipy
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from pmlray.law import LawData
from scripts.bench.design.calibration_worlds import Asked

Interval = tuple[np.ndarray, np.ndarray]
STARTS = ((0.4, 0.5), (0.4, 1.2), (1.0, 0.5), (1.0, 1.2))
NORMAL_90 = 1.645


def gaussian_process(data: LawData, asked: Asked) -> Interval:
    """A Gaussian process with a length scale for each logarithm, capped at the base loss."""
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF([1.0] * 3, (0.1, 20.0))
    process = GaussianProcessRegressor(
        kernel + WhiteKernel(0.01, (1e-5, 1.0)),
        normalize_y=True,
        n_restarts_optimizer=2,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process.fit(_logs(data.lora_rank, data.seq_len, data.train_steps), data.delta_loss)
    mean, sd = process.predict(_logs(asked.r, asked.length, asked.t), return_std=True)
    return _capped(mean, NORMAL_90 * sd, data)


def least_squares(data: LawData, asked: Asked) -> Interval:
    """The forms by nonlinear least squares, the best by BIC, with Student's intervals."""
    fits = [_fitted(form, data) for form in ("power", "ceiling", "exponential")]
    _, law, found = min(fits, key=lambda fit: fit[0])
    n, n_params = data.delta_loss.size, found.x.size
    spare = max(n - n_params, 1)
    variance = 2.0 * found.cost / spare
    cov = variance * np.linalg.pinv(found.jac.T @ found.jac)
    at = (asked.r, asked.length, asked.t, np.full(asked.r.size, np.median(data.base_loss)))
    mean = law(found.x, *at)
    steps = 1e-5 * np.eye(n_params)
    jac = np.stack([(law(found.x + s, *at) - law(found.x - s, *at)) / 2e-5 for s in steps], axis=1)
    of_law = np.einsum("np,pq,nq->n", jac, cov, jac)
    sd = np.sqrt(of_law + variance * asked.of_runs)
    return _capped(mean, scipy.stats.t.ppf(0.95, spare) * sd, data)


def _fitted(
    form: str, data: LawData
) -> tuple[float, Callable[..., np.ndarray], scipy.optimize.OptimizeResult]:
    several = np.unique(data.train_steps).size > 1
    middle = [float(np.log(x).mean()) for x in (data.lora_rank, data.seq_len, data.train_steps)]

    def law(
        p: np.ndarray, r: np.ndarray, length: np.ndarray, t: np.ndarray, base: np.ndarray
    ) -> np.ndarray:
        log_a = p[0] + p[1] * (np.log(r) - middle[0]) - p[2] * (np.log(length) - middle[1])
        if several:
            log_a = log_a + p[4] * (np.log(t) - middle[2])
        z = np.exp(np.clip(log_a, -50.0, 50.0)) + p[3]
        if form == "power":
            return np.minimum(z, base)
        if form == "exponential":
            return np.where(z > 0, -base * np.expm1(-np.maximum(z, 0.0) / base), z)
        n = np.exp(p[-1])
        share = np.maximum(z, 1e-12) / base
        return np.where(z > 0, z * np.exp(-np.logaddexp(0.0, n * np.log(share)) / n), z)

    at = (data.lora_rank, data.seq_len, data.train_steps, data.base_loss)
    level = math.log(max(float(data.delta_loss.mean()), 1e-3))
    low, high = [-15.0, 0.0, 0.0, -50.0], [15.0, 4.0, 4.0, 50.0]
    rest: list[float] = []
    if several:
        low, high, rest = [*low, -1.0], [*high, 4.0], [*rest, 0.7]
    if form == "ceiling":
        low, high, rest = [*low, -0.7], [*high, 3.5], [*rest, math.log(5.0)]
    found = [
        scipy.optimize.least_squares(
            lambda p: law(p, *at) - data.delta_loss,
            [level, alpha, beta, 0.0, *rest],
            bounds=(low, high),
            max_nfev=300,
        )
        for alpha, beta in STARTS
    ]
    best = min(found, key=lambda one: one.cost)
    n = data.delta_loss.size
    bic = n * math.log(max(2.0 * best.cost / n, 1e-8)) + best.x.size * math.log(n)
    return bic, law, best


def _logs(r: np.ndarray, length: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.log(np.stack([r, length, t], axis=1))


def _capped(mean: np.ndarray, half: np.ndarray, data: LawData) -> Interval:
    return mean - half, np.minimum(mean + half, np.median(data.base_loss))


RIVALS: Mapping[str, Callable[[LawData, Asked], Interval]] = MappingProxyType(
    {"gaussian_process": gaussian_process, "least_squares": least_squares}
)
