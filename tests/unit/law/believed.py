"""What is believed of a power law, written down anew and integrated by importance sampling.

Independent of `pmlray.law.fitting.posterior`: a dense covariance, no Jacobian, no solver of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from pmlray.law import LawData

Array = NDArray[np.float64]

SIZES = 0.08 * np.exp(0.7 * np.linspace(-2.0, 2.0, 7))
# log amplitude in the middle, alpha, beta, offset, the three terms of the drift among the points,
# and by how much the exponents are others beyond them: above and below in rank, then in length.
N_PARAMS = 11


@dataclass(frozen=True)
class Believed:
    """The prior and the likelihood of points whose base loss is not known.

    offset: what the noise takes for no memory, nats per token; kept: the points (N,) that are
    believed, where not all are; fitted: levels (N,) of the first fit,
    below which no point's noise is taken.
    """

    data: LawData
    offset: float
    kept: NDArray[np.bool_] | None = None
    fitted: Array | None = None

    @property
    def scale(self) -> float:
        return float(np.max(np.abs(self.data.delta_loss)))

    @property
    def u(self) -> Array:
        log = np.log(self.data.lora_rank)
        return log - log.mean()

    @property
    def v(self) -> Array:
        log = np.log(self.data.seq_len)
        return log.mean() - log

    @property
    def mean(self) -> Array:
        level = np.log(max(float(self.data.delta_loss.mean()), 0.01 * self.scale))
        return np.array([level, 0.5, 0.9, 0.2 * self.scale, *[0.0] * 7])

    @property
    def sd(self) -> Array:
        return np.array([1.5, 0.4, 0.5, 0.15 * self.scale, *[0.1] * 3, *[0.2] * 4])

    def covariance(self, sigma: float) -> Array:
        """Of the points' noise: a fifth of a run's is its text's."""
        level = self.data.delta_loss if self.fitted is None else self.fitted
        level = np.maximum(level, self.data.delta_loss)
        own = sigma * np.maximum(level - self.offset, 0.05 * self.scale)
        same = self.data.cluster[:, None] == self.data.cluster[None, :]
        cov = 0.2 * np.outer(own, own) * same
        np.fill_diagonal(cov, own**2 + (0.01 * self.scale) ** 2)
        return cov

    def at(self, theta_SP: Array, u: Array | float, v: Array | float) -> Array:
        """delta_loss where log rank and log length are u above and v below the middle, (S, ...)."""
        m, a, b, offset, d1, d2, d3, *ends = (x[:, None] for x in theta_SP.T)
        u, v = np.atleast_1d(u), np.atleast_1d(v)
        log_a = m + a * u + b * v
        for axis, points, above, below in ((u, self.u, *ends[:2]), (v, self.v, *ends[2:])):
            log_a = log_a + above * np.maximum(axis - points.max(), 0.0)
            log_a = log_a + below * np.minimum(axis - points.min(), 0.0)
        u, v = np.clip(u, self.u.min(), self.u.max()), np.clip(v, self.v.min(), self.v.max())
        return np.exp(log_a + d1 * u**2 + d2 * u * v + d3 * v**2) + offset

    def log_density(self, theta_SP: Array, sigma: float) -> Array:
        """log of prior times likelihood but for (2 pi)^(-N / 2), (S,)."""
        kept = np.arange(len(self.data)) if self.kept is None else np.flatnonzero(self.kept)
        root = np.linalg.cholesky(self.covariance(sigma)[np.ix_(kept, kept)])
        missed = self.at(theta_SP, self.u, self.v) - self.data.delta_loss
        apart = np.linalg.solve(root, missed[:, kept].T)
        found = -0.5 * (apart**2).sum(axis=0) - np.log(np.diag(root)).sum()
        away = (theta_SP - self.mean) / self.sd
        found = found - 0.5 * (away**2).sum(axis=1) - np.log(self.sd * np.sqrt(2 * np.pi)).sum()
        _, a, b, _, d1, d2, d3, *_ = theta_SP.T
        for u, v in product((self.u.min(), self.u.max()), (self.v.min(), self.v.max())):
            for slope in (a + 2 * d1 * u + d2 * v, b + d2 * u + 2 * d3 * v):
                found = found - 0.5 * (np.minimum(slope, 0.0) / 0.05) ** 2
        bounded = (a >= 0) & (a <= 4) & (b >= 0) & (b <= 4)
        return np.where(bounded, found, -np.inf)

    def integrate(
        self, sigma: float, start: Array, n: int, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Samples theta (n, P) of a heavy-tailed proposal around the likeliest, and their log
        importance weights (n,), whose mean weight is the evidence."""

        def minus(theta: Array) -> float:
            return -float(self.log_density(theta[None], sigma)[0])

        best = minimize(minus, start, method="Nelder-Mead", options={"maxiter": 2000}).x
        step = 1e-4 * np.maximum(np.abs(best), 0.1)
        hessian = np.empty((N_PARAMS, N_PARAMS))
        for i, j in product(range(N_PARAMS), repeat=2):
            e, f = step[i] * np.eye(N_PARAMS)[i], step[j] * np.eye(N_PARAMS)[j]
            corners = [best + e + f, best + e - f, best - e + f, best - e - f]
            values = -self.log_density(np.array(corners), sigma)
            hessian[i, j] = (values @ [1.0, -1.0, -1.0, 1.0]) / (4 * step[i] * step[j])
        proposal = multivariate_t(best, 1.3 * np.linalg.inv(hessian), df=6)
        theta = np.atleast_2d(proposal.rvs(n, random_state=rng))
        return theta, self.log_density(theta, sigma) - proposal.logpdf(theta)


def quantiles(values: Array, log_weights: Array, at: tuple[float, ...]) -> Array:
    """Quantiles of weighted samples."""
    order = np.argsort(values)
    share = np.cumsum(np.exp(log_weights[order] - logsumexp(log_weights)))
    return np.interp(at, share, values[order])
