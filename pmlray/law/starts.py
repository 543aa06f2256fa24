"""Where the search for a law begins: an exhaustive grid of exponents, the linear part solved."""

from __future__ import annotations

from itertools import product

import numpy as np

from pmlray.law.data import FloatArray
from pmlray.law.problem import Problem, Targets
from pmlray.law.protocol import Form
from pmlray.law.saturation import unsaturate, unsaturate_exponentially

EXPONENT_GRID = (0.03, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.8, 2.5, 3.5)
BUDGET_GRID = (0.0, 0.15, 0.4, 1.0)
SHARPNESS_GRID = (1.0, 2.5, 6.0, 15.0)
DROP_GRID = (0.0, 0.2, 0.5)
# Where between the smallest and the largest rank a break is looked for, in log rank.
BREAK_GRID = (0.25, 0.5, 0.75)
POWER_STARTS = 6
STARTS_PER_SHARPNESS = 2
STARTS_PER_BREAK = 2
# Starts of each form where every point of the grid gives a C > 0.
N_STARTS: dict[Form, int] = {
    "power": POWER_STARTS,
    "ceiling": STARTS_PER_SHARPNESS * len(SHARPNESS_GRID) + 1,
    "exponential_ceiling": POWER_STARTS + 1,
    "broken": STARTS_PER_BREAK * len(DROP_GRID) * len(BREAK_GRID),
}
# Above this share of the ceiling the noise of a point says more about its uncapped value than the
# law does; the point still counts in the fit itself.
MAX_SHARE_OF_CEILING = 0.98


def grid_starts(problem: Problem, targets: Targets) -> FloatArray:
    """Starting points theta (S, P), the same for the same points.

    S = 0 when no exponents give the power form a C > 0. The capped forms are straightened (z from
    delta, weighted by d delta/dz; for each n of a grid where there is one), which leaves the power
    form's linear problem; the broken form starts from the power form with breaks of a grid.
    """
    if problem.form == "power":
        return _best(problem, targets, POWER_STARTS)
    if problem.form == "broken":
        return _broken_starts(problem, _best(problem, targets, STARTS_PER_BREAK))
    starts: list[FloatArray] = []
    share = np.clip(problem.y_N / problem.base_N, 0.0, MAX_SHARE_OF_CEILING)
    capped = np.where(problem.y_N > 0, share * problem.base_N, problem.y_N)
    if problem.form == "exponential_ceiling":
        z = unsaturate_exponentially(capped, problem.base_N)
        straight = Targets(z[None], (1.0 - share)[None], targets.prior_BP, targets.prior_weight)
        return np.concatenate([_best(problem, straight, POWER_STARTS), _flat_start(problem)])
    for n in SHARPNESS_GRID:
        slope = (1.0 - share**n) ** (1.0 + 1.0 / n)
        z = unsaturate(capped, problem.base_N, n)
        straight = Targets(z[None], slope[None], targets.prior_BP, targets.prior_weight)
        found = _best(problem, straight, STARTS_PER_SHARPNESS)
        found[:, -1] = np.log(n)
        starts.append(found)
    return np.concatenate([*starts, _flat_start(problem)])


def _broken_starts(problem: Problem, power_starts: FloatArray) -> FloatArray:
    low, high = problem.lower_P[-1], problem.upper_P[-1]
    starts: list[FloatArray] = []
    for drop, share in product(DROP_GRID, BREAK_GRID):
        theta = power_starts.copy()
        theta[:, -2], theta[:, -1] = drop, low + share * (high - low)
        # Half of the bend is above the grid's middle: the exponent below it is the larger one.
        theta[:, 1] += drop / 2.0
        starts.append(theta)
    return np.concatenate(starts)


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
    c, offset, r, _ = problem.fit_linear(grid, targets, the_only_one)
    amplitude = c[:, 0]
    usable = np.flatnonzero(amplitude > 0)
    order = usable[np.argsort(np.sum(r[usable] ** 2, axis=1), kind="stable")][:n]
    theta = np.zeros((order.size, problem.n_params))
    theta[:, 0] = np.log(amplitude[order])
    theta[:, 3] = offset[order]
    theta[:, problem.exponent_columns] = grid[order]
    return theta
