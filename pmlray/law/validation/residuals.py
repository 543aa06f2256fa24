"""Residuals of a fit: patterns along a variable, and differences between sequences.

Shapes: N points, P parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from pmlray.law.data import FloatArray, IntArray, LawData
from pmlray.law.fitting.fit import FitStatus, LawFit, censored_points, usable_points

# Probability of finding structure where there is none, over all the variables together.
FALSE_ALARM = 0.05
# Residuals below this share of the points' root mean square are rounding.
ROUNDING = 1e-9
# Nor is there structure in residuals below this share of the noise of their runs: the prior leaves
# as much where points are exact.
BELOW_NOISE = 0.1
# Parameters of the reference placement that an adapter's are worth: its rank there up to a factor.
EFFECTIVE = "effective parameters"
# Added directions of which the law's own parameters leave less than this share are dropped.
LEAST_SHARE = 1e-6


@dataclass(frozen=True, slots=True)
class ResidualTrend:
    """Test of residuals along `along`: lora_rank, seq_len, train_steps or predicted; of several
    placements `EFFECTIVE` in place of lora_rank.

    `correlation`: Spearman's, of the signed residual with the variable. `share`: of the
    residual sum of squares that a parabola in the variable explains beyond what the law's own
    parameters could. `p_value`: of that share under independent normal noise of equal size. None
    where the points are too few or fitted far better than their noise, or where an UNDERDETERMINED
    fit, held by its prior, does no better than their mean.
    """

    along: str
    correlation: float | None
    share: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class ClusterSpread:
    """Residual noise, nats per token: of the clusters' means about 0, and within clusters.

    One-way random effects: `between` is 0 where the means differ by no more than the noise within
    would make them. `p_value` of equal means, by the F test.
    """

    n_clusters: int
    between: float
    within: float
    p_value: float


@dataclass(frozen=True, slots=True)
class ResidualStructure:
    """Signed residuals measured - predicted (N,) of the points fitted, nats per token, with these
    `points` and the tests' results. Points taken as lower bounds have no residual and are left out.
    `spread` is None where no cluster has two points or all are of one cluster."""

    points: LawData
    predicted: FloatArray
    residual: FloatArray
    trends: tuple[ResidualTrend, ...]
    spread: ClusterSpread | None

    @property
    def left(self) -> tuple[str, ...]:
        """Variables along which structure is left, at a false alarm rate of 5 % over all of them
        together (Bonferroni)."""
        tested = [t for t in self.trends if t.p_value is not None]
        return tuple(t.along for t in tested if (t.p_value or 0.0) * len(tested) < FALSE_ALARM)


def residual_structure(data: LawData, fit: LawFit) -> ResidualStructure:
    """Test the residuals of a fit to `data` for structure.

    A variable is tested by adding two columns to the law's Jacobian: its logarithm and the square
    of that, or for the prediction its square and its cube (Ramsey 1969, RESET,
    doi:10.1111/j.2517-6161.1969.tb00796.x), and asking by an F test whether they explain more than
    chance. Least squares has already taken from the residuals what the parameters explain; the test
    allows for that, where a plain correlation would not. It takes points as independent: where
    sequences differ (`spread`), it finds structure more often.
    """
    points = data.subset(usable_points(data, fit.law.form, fit.options))
    measured = ~censored_points(points, fit.law.form, fit.options)
    points, weights = points.subset(measured), fit.weights[measured]
    at = (fit.law_ranks(points), points.seq_len, points.train_steps, points.base_loss)
    predicted = fit.law.predict(*at)
    residual = points.delta_loss - predicted
    root_w = np.sqrt(weights)
    jac = root_w[:, None] * fit.jacobian(*at[:3], points.placement, points.base_loss)
    exact = _rms(residual) <= ROUNDING * _rms(points.delta_loss)
    spread_of_all = float(np.sum((points.delta_loss - points.delta_loss.mean()) ** 2))
    weak = fit.status is FitStatus.UNDERDETERMINED
    # Small shifts by a weak prior lie in the law's own directions, which the test leaves out; a
    # fit worse than the points' mean is shifted by much.
    close = _rms(root_w * residual) <= BELOW_NOISE * fit.sigma
    untestable = exact or close or (weak and float(np.sum(residual**2)) >= spread_of_all)
    trends: list[ResidualTrend] = []
    for along, axis in (
        (EFFECTIVE if points.several_placements else "lora_rank", at[0]),
        ("seq_len", points.seq_len),
        ("train_steps", points.train_steps),
        ("predicted", predicted),
    ):
        if np.unique(axis).size < 2:
            continue
        if untestable:
            trends.append(ResidualTrend(along, None, None, None))
            continue
        if along == "predicted":
            columns = np.stack([axis**2, axis**3], axis=1)
        else:
            # Steps are 0 where they are unknown; ranks of a reference with many parameters are
            # below 1.
            log = np.log(np.where(axis > 0.0, axis, 1.0))
            columns = np.stack([log - log.mean(), (log - log.mean()) ** 2], axis=1)
        share, p_value = _added_variables(root_w * residual, jac, root_w[:, None] * columns)
        trends.append(ResidualTrend(along, spearman(axis, residual), share, p_value))
    spread = None if exact else cluster_spread(residual, points.cluster)
    return ResidualStructure(points, predicted, residual, tuple(trends), spread)


def cluster_spread(residual: FloatArray, cluster: IntArray) -> ClusterSpread | None:
    """Return the spread of residuals (N,) between and within clusters (N,); None where undefined.

    The one-way analysis of variance for unequal groups: between^2 = (MSB - MSW) / n0 with
    n0 = (N - sum n_c^2 / N) / (k - 1) (Searle, Casella and McCulloch 1992, Variance Components).
    """
    _, group, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    group, k, n = group.reshape(-1), sizes.size, residual.size
    if k < 2 or n == k:
        return None
    means = np.bincount(group, residual) / sizes
    within = float(np.sum((residual - means[group]) ** 2)) / (n - k)
    between = float(np.sum(sizes * (means - residual.mean()) ** 2)) / (k - 1)
    n0 = (n - float(np.sum(sizes**2)) / n) / (k - 1)
    p_value = float(fdtrc(k - 1, n - k, between / within)) if within > 0 else 0.0
    return ClusterSpread(k, math.sqrt(max(0.0, between - within) / n0), math.sqrt(within), p_value)


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Return Spearman's rank correlation of two arrays (N,), ties sharing their mean rank; None
    where one of them is constant."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else None


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[place.reshape(-1)]


def _added_variables(
    residual: FloatArray, jac: FloatArray, columns: FloatArray
) -> tuple[float | None, float | None]:
    """Return the share of the residual sum of squares that columns (N, 2) explain beside jac (N,
    P), and the p value of its F test."""
    own = _basis(_normed(jac), 1e-10)
    left = residual - own @ (own.T @ residual)
    columns = _normed(columns)
    added = _basis(columns - own @ (own.T @ columns), LEAST_SHARE)
    q = int(added.shape[1])
    dof = int(residual.size - own.shape[1]) - q
    total = float(left @ left)
    if q == 0 or dof < 1 or total <= 0:
        return None, None
    explained = float(np.sum((added.T @ left) ** 2))
    rest = max(total - explained, 1e-300)
    return explained / total, float(fdtrc(q, dof, (explained / q) / (rest / dof)))


def _normed(columns: FloatArray) -> FloatArray:
    """Return columns (N, C) of length 1; a column of zeros stays as it is."""
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)


def _basis(columns: FloatArray, least: float) -> FloatArray:
    """Return an orthonormal basis of the columns (N, C); directions shorter than `least` are
    dropped."""
    u, size, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, size > least]


def _rms(values: FloatArray) -> float:
    return math.sqrt(float(np.mean(values**2)))
