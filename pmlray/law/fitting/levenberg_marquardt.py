"""Bounded nonlinear least squares for many small problems at once.

Shapes: B problems, P parameters, M residuals. A law has 4 to 6 parameters and some tens of points,
so one problem is mostly call overhead; the starts of a fit and the samples of a posterior are
therefore stepped together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pmlray.law.data import BoolArray, FloatArray, IntArray

# (theta_BP, indices of the B problems) -> (residuals_BM, jacobian_BMP)
Residuals = Callable[[FloatArray, IntArray], tuple[FloatArray, FloatArray]]

MAX_ITER = 300
STEP_TOL = 1e-6
GAIN_TOL = 1e-9
TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Solution:
    """Solutions of the problems: theta (B, P) and rss (B,)."""

    theta_BP: FloatArray
    rss_B: FloatArray


def levenberg_marquardt(
    residuals: Residuals,
    start_BP: FloatArray,
    lower_P: FloatArray,
    upper_P: FloatArray,
    gain_tol: float = GAIN_TOL,
) -> Solution:
    """Minimise the sum of squared residuals of B problems inside a box.

    A problem ends where neither its last step nor the next would change the sum by more than the
    share `gain_tol`.

    A parameter at its bound whose gradient points outwards is held there; the others take
    Marquardt-scaled steps, damped by Nielsen's rule (Madsen, Nielsen and Tingleff 2004, Methods
    for non-linear least squares problems).
    """
    theta = _within(start_BP, lower_P, upper_P)
    r, jac = residuals(theta, np.arange(len(theta)))
    rss = _squared(r)
    width_P = upper_P - lower_P
    # State of the problems that are not solved yet, in the order of `rows`.
    rows = np.flatnonzero(np.isfinite(rss))
    at, at_r, at_jac, at_rss = theta[rows], r[rows], jac[rows], rss[rows]
    damping = np.full(rows.size, 1e-3)
    growth = np.full(rows.size, 2.0)
    for _ in range(MAX_ITER):
        if rows.size == 0:
            break
        grad, hess, free = _normal_equations(at, at_r, at_jac, lower_P, upper_P)
        trial = _within(at + _damped_step(grad, hess, free, damping), lower_P, upper_P)
        step = trial - at
        trial_r, trial_jac = residuals(trial, rows)
        trial_rss = _squared(trial_r)
        quadratic = np.einsum("bp,bpq,bq->b", step, hess, step)
        expected = -(2.0 * (grad * step).sum(axis=1) + quadratic)
        gained = at_rss - trial_rss
        better = trial_rss < at_rss
        share = _within(gained / np.maximum(expected, TINY), 0.0, 1.0)
        shrink = np.maximum(1.0 / 3.0, 1.0 - (2.0 * share - 1.0) ** 3)
        damping = _within(damping * np.where(better, shrink, growth), 1e-15, 1e15)
        growth = np.where(better, 2.0, np.minimum(2.0 * growth, 1e6))
        small = (np.abs(step) <= STEP_TOL * (np.abs(trial) + 1e-2)).all(axis=1)
        # Solved: neither the predicted nor the actual gain of the step is above the tolerance.
        least = gain_tol * at_rss
        small |= (expected <= least) & (np.abs(gained) <= least)
        # On a plateau, as where all points are at their ceiling, no step within the box gains.
        small |= 2.0 * (np.abs(grad * free) * width_P).sum(axis=1) <= least
        if better.all():
            at, at_r, at_jac, at_rss = trial, trial_r, trial_jac, trial_rss
        else:
            at[better], at_r[better] = trial[better], trial_r[better]
            at_jac[better], at_rss[better] = trial_jac[better], trial_rss[better]
        if small.any():
            done, on = rows[small], ~small
            theta[done], r[done], jac[done] = at[small], at_r[small], at_jac[small]
            rss[done] = at_rss[small]
            rows, at, at_r, at_jac, at_rss = rows[on], at[on], at_r[on], at_jac[on], at_rss[on]
            damping, growth = damping[on], growth[on]
    theta[rows], r[rows], jac[rows], rss[rows] = at, at_r, at_jac, at_rss
    return Solution(theta, rss)


def scaled_inverse(information_PP: FloatArray) -> FloatArray:
    """Return the inverse, or pseudo-inverse, of a symmetric information matrix (P, P).

    Scaled to a unit diagonal first: parameters differ in unit and size.
    """
    size = np.sqrt(np.maximum(np.diag(information_PP), TINY))
    return np.linalg.pinv(information_PP / np.outer(size, size), rcond=1e-13, hermitian=True) / (
        np.outer(size, size)
    )


def _within(x: FloatArray, lower: ArrayLike, upper: ArrayLike) -> FloatArray:
    # np.clip takes several times as long on arrays of this size.
    return np.minimum(np.maximum(x, lower), upper)


def _squared(r_BM: FloatArray) -> FloatArray:
    return np.einsum("bm,bm->b", r_BM, r_BM)


def _damped_step(
    grad: FloatArray, hess: FloatArray, free: BoolArray, damping: FloatArray
) -> NDArray[np.floating[Any]]:
    """Return Marquardt's step of each problem, 0 for a parameter held at its bound."""
    identity = np.eye(grad.shape[1])
    diag = np.einsum("bpp->bp", hess)
    scale = np.maximum(diag, 1e-12 * diag.max(axis=1, keepdims=True) + TINY)
    damped = hess + (damping[:, None] * scale)[:, :, None] * identity
    if not free.all():
        damped = np.where(free[:, :, None] & free[:, None, :], damped, identity)
    steps: NDArray[np.floating[Any]] = np.linalg.solve(damped, -(grad * free)[:, :, None])
    return steps[:, :, 0]


def _normal_equations(
    theta: FloatArray, r: FloatArray, jac: FloatArray, lower: FloatArray, upper: FloatArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return the gradient J'r, the matrix J'J, and a mask of the parameters not held at a bound."""
    grad = (jac.transpose(0, 2, 1) @ r[:, :, None])[:, :, 0]
    hess = jac.transpose(0, 2, 1) @ jac
    held = ((theta <= lower) & (grad > 0)) | ((theta >= upper) & (grad < 0))
    return grad, hess, ~held
