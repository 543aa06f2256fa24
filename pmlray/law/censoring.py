"""Points of which only a lower bound is known: the Tobit likelihood as least squares."""

from __future__ import annotations

import numpy as np
from scipy.special import log_ndtr

from pmlray.law.data import FloatArray

LEAST_DEVIANCE = 1e-200


def censored_residual(
    mean: FloatArray, bound: FloatArray, sigma: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """A residual whose square is the deviance of `value >= bound`, and its derivative by the mean.

    mean: the law's value, bound: what was measured, sigma: the noise; nats per token, of one shape.
    With a = (bound - mean) / sigma the log likelihood of a normal value above its bound is log(1 -
    Phi(a)) (Amemiya 1984, doi:10.1016/0304-4076(84)90074-5). r = sigma sqrt(D) with D = -2 log(1 -
    Phi(a)) makes r^2 / sigma^2 its deviance, beside (y - mean)^2 / sigma^2 of a measured point;
    dr/dmean = -h / sqrt(D), h = phi(a) / (1 - Phi(a))."""
    a = (bound - mean) / sigma
    root = np.sqrt(np.maximum(-2.0 * log_ndtr(-a), LEAST_DEVIANCE))
    return sigma * root, -hazard(a) / root


def expected_value(mean: FloatArray, bound: FloatArray, sigma: FloatArray) -> FloatArray:
    """Mean of a normal value that is known to exceed its bound, nats per token."""
    return mean + sigma * hazard((bound - mean) / sigma)


def hazard(a: FloatArray) -> FloatArray:
    """phi(a) / (1 - Phi(a)), exact far in the tails."""
    return np.exp(-0.5 * a**2 - 0.5 * np.log(2.0 * np.pi) - log_ndtr(-a))
