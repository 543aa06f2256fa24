"""Intervals of a law's parameters and predictions, by a bootstrap clustered on (sequence, seed)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from pmlray.errors import FitError
from pmlray.law.data import FloatArray, IntArray, LawData
from pmlray.law.fit import FitStatus, LawFit, usable_points
from pmlray.law.problem import Targets, build_problem
from pmlray.law.protocol import Law
from pmlray.law.solver import scaled_inverse

# With one or two clusters nothing can be said about the spread between them.
MIN_CLUSTERS = 3
MIN_RESIDUAL_SHARE = 1e-3
_LOG_NAMES = {"log_coef": "coef", "log_sharpness": "sharpness", "log_break_rank": "break_rank"}


def bootstrap_law(data: LawData, fit: LawFit, n: int, rng: np.random.Generator) -> FloatArray:
    """Params of `fit.law` refitted to n resamples, shape (at most n, P), for the data of the fit.

    A wild cluster bootstrap: each resample is the fitted law plus the residuals, those of one
    (sequence, seed) flipped in sign together (Cameron, Gelbach and Miller 2008,
    doi:10.1162/rest.90.3.414). The design stays whole, which drawing clusters would not leave it: a
    search has few of them, each with its own part of the grid. Residuals are first freed of the
    share that the fit absorbed: clusters as in CR2 (Bell and McCaffrey 2002), points that are their
    own cluster as in HC3 (MacKinnon and White 1985), whose 90% intervals held the truth more nearly
    90% of the time in simulated searches; under weights that share is the weighted fit's. Every
    resample is rescaled by sqrt(nu / chi2_nu), so that few clusters or few spare points give
    Student's wider tails. The weights and the values that stand for censored points stay those of
    the fit. With fewer than 3 clusters every point counts as its own: the intervals then leave out
    what differs between sequences. With fewer points than parameters + 1 the noise is normal,
    `fit.noise`, and in every UNDERDETERMINED fit the prior's centre is drawn anew, so that what the
    points leave open spreads as the prior does. Resamples without a usable law are left out;
    FitError when that is more than half.
    """
    points = data.subset(usable_points(data, fit.law.form, fit.options))
    problem = build_problem(points, fit.law.form)
    weak = fit.status is FitStatus.UNDERDETERMINED
    predicted = fit.law.predict(
        points.lora_rank, points.seq_len, points.train_steps, points.base_loss
    )
    spare = len(points) - problem.n_params
    if spare < 1:
        noise = fit.noise.sd(predicted) * rng.standard_normal((n, len(points)))
    else:
        cluster = np.unique(points.cluster, return_inverse=True)[1].reshape(-1)
        n_clusters = int(cluster.max()) + 1
        dof = min(spare, n_clusters - 1)
        if n_clusters < MIN_CLUSTERS:
            cluster, dof = np.arange(len(points)), spare
        residual = _freed_residuals(points, fit, fit.values - predicted, cluster, weak)
        signs = rng.choice([-1.0, 1.0], size=(n, int(cluster.max()) + 1))
        noise = signs[:, cluster] * residual * np.sqrt(dof / rng.chisquare(dof, size=(n, 1)))
    prior = np.repeat(problem.prior_mean_P[None], n, axis=0)
    if weak:
        drawn = np.isfinite(problem.prior_sd_P)
        spread = problem.prior_sd_P[drawn] * rng.standard_normal((n, int(drawn.sum())))
        prior[:, drawn] += spread
    root_w = np.broadcast_to(np.sqrt(fit.weights), noise.shape)
    targets = Targets(predicted + noise, root_w, prior, fit.sigma if weak else 0.0)
    start = np.repeat(problem.theta(fit.law)[None], n, axis=0)
    theta = problem.solve(start, targets).theta_BP
    usable = np.all(np.isfinite(theta), axis=1)
    if 2 * int(usable.sum()) < n:
        raise FitError(
            "more than half of the bootstrap resamples have no usable law; measure more points"
        )
    return problem.params(theta[usable])


def param_intervals(
    law: Law, samples: FloatArray, level: float = 0.9
) -> Mapping[str, tuple[float, float]]:
    """Central intervals of the named parameters from bootstrap samples (n, P).

    `coef`, `sharpness` and `break_rank` are given as themselves, not as their logarithms.
    """
    low, high = _quantiles(samples, level)
    intervals: dict[str, tuple[float, float]] = {}
    for name, a, b in zip(law.param_names, low.tolist(), high.tolist(), strict=True):
        if name in _LOG_NAMES:
            intervals[_LOG_NAMES[name]] = (float(np.exp(a)), float(np.exp(b)))
        else:
            intervals[name] = (a, b)
    return intervals


def prediction_interval(
    fit: LawFit,
    samples: FloatArray,
    lora_rank: ArrayLike,
    seq_len: ArrayLike,
    train_steps: ArrayLike,
    level: float = 0.9,
) -> tuple[FloatArray, FloatArray]:
    """Central interval (low, high) of the law itself, not of one noisy measurement, in nats."""
    predicted = [
        fit.law.with_params(sample).predict(lora_rank, seq_len, train_steps) for sample in samples
    ]
    return _quantiles(np.array(predicted), level)


def derived_interval(
    fit: LawFit, samples: FloatArray, quantity: Callable[[Law], float], level: float = 0.9
) -> tuple[float, float]:
    """Central interval of any number read off a law, such as the rank that a recall needs.

    Infinite values are allowed and sort above all others.
    """
    values = np.sort([quantity(fit.law.with_params(sample)) for sample in samples])
    # Interpolating between inf and inf is NaN, so whole order statistics are taken.
    edge = (1.0 - level) / 2.0 * (len(values) - 1)
    return float(values[int(np.floor(edge))]), float(values[len(values) - 1 - int(np.floor(edge))])


def _quantiles(samples: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    return low, high


def _freed_residuals(
    points: LawData, fit: LawFit, residual: FloatArray, cluster: IntArray, weak: bool
) -> FloatArray:
    """Residuals of each cluster times (I - H)^(-1/2), of single points times (I - H)^-1.

    H is the cluster's block of the hat matrix of the points times their root weights.
    """
    root_w = np.sqrt(fit.weights)
    jac = fit.law.jacobian(points.lora_rank, points.seq_len, points.train_steps, points.base_loss)
    jac, residual = root_w[:, None] * jac, root_w * residual
    information = jac.T @ jac
    if weak:
        prior_sd = build_problem(points, fit.law.form).prior_sd_P
        information = information + np.diag((fit.sigma / prior_sd) ** 2)
    hat = jac @ scaled_inverse(information) @ jac.T
    power = -1.0 if int(cluster.max()) + 1 == cluster.size else -0.5
    freed = np.empty_like(residual)
    for c in range(int(cluster.max()) + 1):
        members = np.flatnonzero(cluster == c)
        kept, directions = np.linalg.eigh(np.eye(members.size) - hat[np.ix_(members, members)])
        # A direction the fit absorbed wholly holds no residual to scale up.
        gain = np.where(kept > MIN_RESIDUAL_SHARE, np.maximum(kept, MIN_RESIDUAL_SHARE) ** power, 0)
        freed[members] = directions @ (gain * (directions.T @ residual[members]))
    return freed / root_w
