"""Fits that outliers do not bend and that saturated points inform without being believed.

Shapes: N points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pmlray.law.censoring import expected_value, hazard
from pmlray.law.data import BoolArray, FloatArray
from pmlray.law.noise import Noise, noise_power, relative_sd
from pmlray.law.problem import Problem, Targets

# 95 % efficiency under normal noise (Huber 1981, Robust Statistics, doi:10.1002/0471725250).
HUBER_K = 1.345
# The median absolute deviation of a normal sample times this is its standard deviation.
MAD_TO_SD = 1.4826
MAX_ROUNDS = 200
SETTLED = 1e-7
LEAST_NOISE = 1e-12


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How points count in a fit.

    `loss`: `gaussian` least squares, or `huber`, which gives a residual beyond 1.345 noise levels a
    weight that falls as its inverse; the noise level is the residuals' scaled MAD. `saturated`:
    `filter` sets points aside that an uncapped form cannot describe (final_loss <= ln 2, the
    paper's rule), and keeps every point of a capped form; `censor` takes from such points, and
    from points of a capped form whose final_loss is at most `floor` nats, only that delta_loss is
    at least what was measured. `noise`: `equal` for all points, or `by_value`, which lets it follow
    a power of delta_loss where the residuals refuse equal noise at the 5 % level, and weighs points
    by it.
    """

    loss: Literal["gaussian", "huber"] = "gaussian"
    saturated: Literal["filter", "censor"] = "filter"
    floor: float = 0.02
    noise: Literal["equal", "by_value"] = "equal"


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the rounds of `settle` ended.

    `theta_P`; the values (N,) that stand for the points, measured or expected; their weights (N,);
    the noise; whether the rounds came to rest.
    """

    theta_P: FloatArray
    y_N: FloatArray
    weight_N: FloatArray
    noise: Noise
    at_rest: bool


def settle(
    problem: Problem,
    theta_P: FloatArray,
    noise: Noise,
    prior_weight: float,
    censored_N: BoolArray,
    options: FitOptions,
    *,
    by_value: bool,
) -> Settled:
    """Refit from theta until the weights and the noise no longer move.

    Huber's weights by reweighted least squares; censored points by their Tobit likelihood, whose
    noise level counts what a censored value would vary: sigma^2 (1 + a h - h^2) with a and h as in
    `censored_residual`. `by_value` fits the noise's power too, to the points that were measured,
    and divides by the square of its relative size.
    """
    known = ~censored_N
    y_N, weight_N = problem.y_N, np.ones_like(problem.y_N)
    dof = max(problem.y_N.size - problem.n_params, 1)
    censored = censored_N if censored_N.any() else None
    at_rest = False
    for _ in range(MAX_ROUNDS):
        mean_N, before = problem.values(theta_P), (weight_N, noise.sigma)
        if by_value:
            left_N = problem.y_N[known] - mean_N[known]
            noise = replace(noise, power=noise_power(mean_N[known], left_N, noise.ref))
        relative_N = relative_sd(mean_N, noise.power, noise.ref)
        y_N = problem.y_N.copy()
        sd_N = noise.sigma * relative_N
        y_N[censored_N] = expected_value(
            mean_N[censored_N], problem.y_N[censored_N], sd_N[censored_N]
        )
        residual_N = (y_N - mean_N) / relative_N
        weight_N = relative_N**-2
        if options.loss == "huber":
            sigma = max(MAD_TO_SD * float(np.median(np.abs(residual_N[known]))), LEAST_NOISE)
            share_N = HUBER_K * sigma / np.maximum(np.abs(residual_N), HUBER_K * sigma)
            # What is not known cannot be an outlier.
            share_N[censored_N] = 1.0
            weight_N = weight_N * share_N
        else:
            a = (problem.y_N[censored_N] - mean_N[censored_N]) / sd_N[censored_N]
            h = hazard(a)
            within = noise.sigma**2 * float(np.sum(1.0 + a * h - h**2))
            sigma = max(float(np.sqrt((np.sum(residual_N**2) + within) / dof)), LEAST_NOISE)
        noise = replace(noise, sigma=sigma)
        targets = Targets(
            problem.y_N[None],
            np.sqrt(weight_N)[None],
            problem.prior_mean_P[None],
            prior_weight,
            censored,
            sigma * relative_N,
        )
        found = problem.solve(theta_P[None], targets).theta_BP[0]
        if not np.all(np.isfinite(found)):
            break
        theta_P = found
        moved = max(
            np.max(np.abs(weight_N - before[0]) / weight_N), abs(noise.sigma / before[1] - 1.0)
        )
        if moved < SETTLED:
            at_rest = True
            break
    return Settled(theta_P, y_N, weight_N, noise, at_rest)
