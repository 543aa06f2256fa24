"""The projected residuals of the power form: their linear part and their gradient."""

from __future__ import annotations

import numpy as np
import pytest

from pmlray.law import LawData
from pmlray.law.problem import Problem, Targets, build_problem

ROWS = np.arange(3)


def problem_and_targets(prior_weight: float, varies_steps: bool) -> tuple[Problem, Targets]:
    rng = np.random.default_rng(2)
    r = rng.choice([1.0, 2.0, 8.0, 32.0], 14)
    n = rng.choice([50.0, 200.0, 900.0], 14)
    t = rng.choice([100.0, 400.0], 14) if varies_steps else np.full(14, 100.0)
    delta = 9.0 * r**0.6 * n**-0.5 * (t / 100.0) ** 0.3 + 0.2 + 0.1 * rng.standard_normal(14)
    base = np.full(14, 12.0)
    problem = build_problem(LawData(r, n, t, delta, base, base - delta, np.arange(14)), "power")
    y = delta + 0.1 * rng.standard_normal((3, 14))
    targets = Targets(
        y,
        rng.uniform(0.3, 1.5, (3, 14)),
        problem.prior_mean_P + 0.05 * rng.standard_normal((3, problem.n_params)),
        prior_weight,
    )
    return problem, targets


@pytest.mark.parametrize("prior_weight", [0.0, 0.4])
@pytest.mark.parametrize("varies_steps", [False, True])
def test_the_projected_gradient_agrees_with_central_differences(
    prior_weight: float, varies_steps: bool
) -> None:
    problem, targets = problem_and_targets(prior_weight, varies_steps)
    e = np.tile([0.5, 0.7, 0.2][: len(problem.exponent_columns)], (3, 1))
    _, _, _, jac = problem.project(e, targets, ROWS)
    for k in range(e.shape[1]):
        step = np.zeros_like(e)
        step[:, k] = 1e-6
        above = problem.project(e + step, targets, ROWS)[2]
        below = problem.project(e - step, targets, ROWS)[2]
        assert jac[:, :, k] == pytest.approx((above - below) / 2e-6, abs=1e-7)


def test_the_linear_part_is_weighted_least_squares() -> None:
    """Amplitude and offset against numpy's solver on the columns written out."""
    problem, targets = problem_and_targets(0.0, True)
    e = np.array([[0.5, 0.7, 0.2], [0.9, 0.3, 0.1], [0.4, 0.6, 0.3]])
    amplitude, offset, residual, _ = problem.project(e, targets, ROWS)
    c, same_offset, same_residual, _ = problem.fit_linear(e, targets, ROWS)
    assert np.array_equal(c[:, 0], amplitude) and np.array_equal(same_offset, offset)
    assert np.array_equal(same_residual, residual[:, : same_residual.shape[1]])
    for b in ROWS:
        columns = np.stack([np.exp(problem.x_NK @ e[b]), np.ones(14)], axis=1)
        w = targets.root_w_BN[b]
        (c, k), *_ = np.linalg.lstsq(w[:, None] * columns, w * targets.y_BN[b], rcond=None)
        assert (amplitude[b], offset[b]) == pytest.approx((c, k))
        left = w * (targets.y_BN[b] - columns @ [c, k])
        assert np.sum(residual[b] ** 2) == pytest.approx(np.sum(left**2))
