"""How large the noise of a run is, by what the law predicts for it.

Shapes: N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray

# No measurement repeats to better than this, nats per token; a fit of few points may claim it.
LEAST_NOISE = 1e-3
POWER_BOUNDS = (-1.0, 2.0)
# Below this share of `ref` the noise no longer changes: a law that predicts nothing has no scale.
LEAST_SHARE = 0.05
# Upper 5 % point of chi-square with one degree of freedom.
LEAST_RATIO = 3.841
# With fewer points to spare any power fits.
LEAST_SPARE = 10


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviation of a run's delta_loss: sigma (|delta_loss| / ref)^power.

    `sigma`, nats per token, is that at |delta_loss| = `ref`, nats per token; a power of 0 is the
    same noise everywhere.
    """

    sigma: float
    power: float = 0.0
    ref: float = 1.0

    def sd(self, delta_loss: ArrayLike) -> FloatArray:
        """Standard deviation, nats per token, where the law predicts delta_loss (any shape)."""
        return self.sigma * relative_sd(np.asarray(delta_loss, dtype=float), self.power, self.ref)


def relative_sd(mean: FloatArray, power: float, ref: float) -> FloatArray:
    """(|mean| / ref)^power for a law's values of any shape, nats per token."""
    return np.maximum(np.abs(mean) / ref, LEAST_SHARE) ** power


def noise_power(mean_N: FloatArray, residual_N: FloatArray, ref: float) -> float:
    """The power whose noise makes the residuals likeliest, held within POWER_BOUNDS.

    Pseudo-likelihood of a variance function (Carroll and Ruppert 1988, Transformation and Weighting
    in Regression, section 3.2) with sigma profiled out: N/2 log sum (residual / rel_sd)^2
    + sum log rel_sd, convex in the power, so its derivative has one root.
    """
    low, high = POWER_BOUNDS

    def slope(power: float) -> float:
        return _slope(power, mean_N, residual_N, ref)

    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    return float(scipy.optimize.root_scalar(slope, bracket=(low, high), xtol=1e-12).root)


def noise_varies(mean_N: FloatArray, residual_N: FloatArray, n_params: int, ref: float) -> bool:
    """Whether equal noise is refused at the 5 % level, by the likelihood ratio."""
    if residual_N.size - n_params < LEAST_SPARE or not np.any(residual_N):
        return False
    power = noise_power(mean_N, residual_N, ref)
    ratio = 2.0 * (
        _deviance(0.0, mean_N, residual_N, ref) - _deviance(power, mean_N, residual_N, ref)
    )
    return ratio > LEAST_RATIO


def _deviance(power: float, mean_N: FloatArray, residual_N: FloatArray, ref: float) -> float:
    sd = relative_sd(mean_N, power, ref)
    n = residual_N.size
    return float(0.5 * n * np.log(np.sum((residual_N / sd) ** 2)) + np.sum(np.log(sd)))


def _slope(power: float, mean_N: FloatArray, residual_N: FloatArray, ref: float) -> float:
    log_scale = np.log(relative_sd(mean_N, 1.0, ref))
    share = (residual_N / relative_sd(mean_N, power, ref)) ** 2
    return float(log_scale.sum() - residual_N.size * (share @ log_scale) / share.sum())
