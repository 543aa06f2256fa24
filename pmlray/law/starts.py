"""Where the search for a law begins: an exhaustive grid of exponents, the linear part solved."""

from __future__ import annotations

from itertools import product

import numpy as np

from pmlray.law.data import FloatArray
from pmlray.law.problem import Problem, Targets
from pmlray.law.saturation import unsaturate

EXPONENT_GRID = (0.03, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.8, 2.5, 3.5)
BUDGET_GRID = (0.0, 0.15, 0.4, 1.0)
SHARPNESS_GRID = (1.0, 2.5, 6.0, 15.0)
POWER_STARTS = 6
STARTS_PER_SHARPNESS = 2
# Above this share of the ceiling the noise of a point says more about its uncapped value than the
# law does; the point still counts in the fit itself.
MAX_SHARE_OF_CEILING = 0.98


def grid_starts(problem: Problem, targets: Targets) -> FloatArray:
    """Starting points theta (S, P), the same for the same points.

    S = 0 when no exponents give the power form a C > 0. The ceiling form is straightened for each n
    of a grid (z from delta, weighted by d delta/dz), which leaves the power form's linear problem.
    """
    if problem.form == "power":
        return _best(problem, targets, POWER_STARTS)
    starts = []
    share = np.clip(problem.y_N / problem.base_N, 0.0, MAX_SHARE_OF_CEILING)
    capped = np.where(problem.y_N > 0, share * problem.base_N, problem.y_N)
    for n in SHARPNESS_GRID:
        slope = (1.0 - share**n) ** (1.0 + 1.0 / n)
        z = unsaturate(capped, problem.base_N, n)
        straight = Targets(z[None], slope[None], targets.prior_BP, targets.prior_weight)
        found = _best(problem, straight, STARTS_PER_SHARPNESS)
        found[:, -1] = np.log(n)
        starts.append(found)
    return np.concatenate([*starts, _flat_start(problem)])


def _flat_start(problem: Problem) -> FloatArray:
    """A weak dependence at the points' level: the one start that no data can rule out."""
    theta = problem.prior_mean_P[None].copy()
    level = float(np.mean(problem.y_N))
    amplitude = max(float(np.std(problem.y_N)), 1e-2 * abs(level), 1e-3)
    theta[0, 0], theta[0, 3] = np.log(amplitude), level - amplitude
    return theta


def _best(problem: Problem, targets: Targets, n: int) -> FloatArray:
    grids = [EXPONENT_GRID, EXPONENT_GRID] + [BUDGET_GRID] * problem.fits_budget
    grid = np.array(list(product(*grids)))
    the_only_one = np.zeros(len(grid), dtype=np.int64)
    amplitude, offset, r, _ = problem.project(grid, targets, the_only_one)
    usable = np.flatnonzero(amplitude > 0)
    order = usable[np.argsort(np.sum(r[usable] ** 2, axis=1), kind="stable")][:n]
    theta = np.zeros((order.size, problem.n_params))
    theta[:, 0] = np.log(amplitude[order])
    theta[:, 3] = offset[order]
    theta[:, problem.exponent_columns] = grid[order]
    return theta
