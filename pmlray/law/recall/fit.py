"""Fit the law of recall to runs whose tokens are known, one by one.

Shapes: N runs, B bins of positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from scipy.special import expit, log_ndtr

from pmlray.errors import FitError
from pmlray.law.data import BoolArray, FloatArray
from pmlray.law.recall.data import TokenRun, token_runs
from pmlray.law.recall.recall_law import RecallLaw, position_bins, wrong_probits
from pmlray.types import Observation

MIN_RUNS = 5
# A weak prior on (logit half share, ln steepness, lead, ln spread), a run's worth of tokens or so:
# it keeps the steepness finite where no loss has both wrong and right tokens.
PRIOR_MEAN = np.array([-1.0, np.log(1.2), 1.8, np.log(0.2)])
PRIOR_SD = np.array([2.0, 0.7, 1.8, 0.7])
BOUNDS = list(zip(PRIOR_MEAN - 6 * PRIOR_SD, PRIOR_MEAN + 6 * PRIOR_SD, strict=True))
# Each of Newton's steps about squares the error: after one as small as this, v is exact.
NEWTON_STEPS, SMALL_STEP = 12, 1e-8
# Logarithm of the standard normal density at 0.
LOG_DENSITY = -0.5 * np.log(2.0 * np.pi)
STEP = 1e-3


@dataclass(frozen=True, slots=True)
class _Counts:
    """Tokens and wrong tokens (N, B) by position, and each run's final loss (N,)."""

    loss: FloatArray
    base_loss: float
    position_B: FloatArray
    tokens: FloatArray
    wrong: FloatArray

    def subset(self, kept: BoolArray) -> _Counts:
        """Return the runs that a mask (N,) keeps; the base loss stays that of all runs."""
        return replace(self, loss=self.loss[kept], tokens=self.tokens[kept], wrong=self.wrong[kept])


def fit_recall(observations: Iterable[Observation]) -> RecallLaw:
    """Fit the law of recall to the SFT runs of the law's phase.

    Largest posterior under a weak prior, with v integrated out by Laplace's approximation; `cov` is
    the inverse of the curvature there. The spread is that of the runs at the largest rank and
    length about a fit to the others, where there are enough: predictions are made beyond the
    measured runs, and runs there differ by more than those fitted. FitError, saying what to
    measure, when runs are too few or all tokens end up alike.
    """
    runs = token_runs(observations)
    _require_transition(runs)
    counts = _counts(runs)
    found = _largest_posterior(counts)
    one_record = all(run.n_records == 1 for run in runs)
    lengths = [run.p.size / run.n_records for run in runs]
    return RecallLaw(
        half_loss=counts.base_loss * float(expit(float(found[0]))),
        steepness=float(np.exp(found[1])),
        lead=float(found[2]),
        spread=float(np.exp(max(found[3], _ln_spread_beyond(runs, counts)))),
        base_loss=counts.base_loss,
        cov=_covariance(found, counts),
        tokens_per_record=None if one_record else float(np.median(lengths)),
        n_runs=len(runs),
    )


def _require_transition(runs: Sequence[TokenRun]) -> None:
    if len(runs) < MIN_RUNS:
        raise FitError(
            f"recall needs at least {MIN_RUNS} runs and there are {len(runs)}: measure more points"
        )
    if not any(run.wrong.any() for run in runs):
        raise FitError(
            "every token of every run is recalled, which says nothing of where recall fails:"
            " measure lower ranks, longer sequences or fewer steps"
        )
    if all(run.wrong.all() for run in runs):
        raise FitError(
            "no token of any run is recalled, which says nothing of where recall begins: measure"
            " higher ranks, shorter sequences or more steps"
        )


def _ln_spread_beyond(runs: Sequence[TokenRun], counts: _Counts) -> float:
    """Return ln spread of the runs at the largest rank and length about a fit to the smaller ones;
    -inf where these cannot be fitted."""
    rank = np.array([run.observation.point.lora_rank for run in runs])
    length = np.array([run.observation.point.seq_len for run in runs])
    beyond = (rank == rank.max()) | (length == length.max())
    try:
        _require_transition([run for run, out in zip(runs, beyond, strict=True) if not out])
    except FitError:
        return -np.inf
    theta = _largest_posterior(counts.subset(~beyond))
    posterior = _NegLogPosterior(counts.subset(beyond))
    found = scipy.optimize.minimize_scalar(
        lambda ln_spread: posterior(np.append(theta[:3], ln_spread)),
        bounds=BOUNDS[3],
        method="bounded",
    )
    return float(found.x)


def _largest_posterior(counts: _Counts) -> FloatArray:
    found = scipy.optimize.minimize(
        _NegLogPosterior(counts), PRIOR_MEAN, method="L-BFGS-B", bounds=BOUNDS
    )
    return found.x


def _counts(runs: Sequence[TokenRun]) -> _Counts:
    position_B, width_B = position_bins(1 + max(int(run.position.max()) for run in runs))
    ends_B = np.cumsum(width_B)
    tokens = np.zeros((len(runs), position_B.size))
    wrong = np.zeros_like(tokens)
    for n, run in enumerate(runs):
        bins = np.searchsorted(ends_B, run.position, side="right")
        tokens[n] = np.bincount(bins, minlength=position_B.size)
        wrong[n] = np.bincount(bins, weights=run.wrong, minlength=position_B.size)
    return _Counts(
        loss=np.array([run.observation.final_loss for run in runs]),
        base_loss=float(np.median([run.observation.base_loss for run in runs])),
        position_B=position_B,
        tokens=tokens,
        wrong=wrong,
    )


class _NegLogPosterior:
    """Negative log posterior of the parameters (4,), as a function that begins its search for each
    run's v at the last ones: from one call to the next they hardly change."""

    def __init__(self, counts: _Counts) -> None:
        self._counts, self._v = counts, np.zeros(counts.loss.size)

    def __call__(self, theta: FloatArray) -> float:
        """Return its value, v integrated out."""
        counts, v = self._counts, self._v
        params_N4 = np.broadcast_to(theta, (v.size, 4))
        spread = float(np.exp(theta[3]))
        # v shifts all probits of a run alike, so they are computed once.
        still = np.zeros(v.size)
        fixed = wrong_probits(params_N4, still, counts.loss, counts.base_loss, counts.position_B)
        for _ in range(NEWTON_STEPS):
            slope, curvature = _slope(v, fixed, spread, counts)
            step = np.clip(slope / curvature, -1.0, 1.0)
            v = v + step
            if np.abs(step).max() < SMALL_STEP:
                break
        _, curvature = _slope(v, fixed, spread, counts)
        # Parameters far off may give no number, from which no later search could begin.
        self._v = np.nan_to_num(v)
        z = fixed + spread * v[:, None]
        likelihood = counts.wrong * log_ndtr(z) + (counts.tokens - counts.wrong) * log_ndtr(-z)
        log_runs = likelihood.sum(axis=1) - 0.5 * v**2 - 0.5 * np.log(curvature)
        prior = 0.5 * float(np.sum(((theta - PRIOR_MEAN) / PRIOR_SD) ** 2))
        return prior - float(log_runs.sum())


def _slope(
    v: FloatArray, fixed: FloatArray, spread: float, counts: _Counts
) -> tuple[FloatArray, FloatArray]:
    """Return the slope of each run's log posterior of v, and its negative curvature, (N,)."""
    z = fixed + spread * v[:, None]
    right = counts.tokens - counts.wrong
    # Slopes of log P(wrong) and, sign turned, of log P(right): inverse Mills ratios.
    of_wrong, of_right = (np.exp(LOG_DENSITY - z**2 / 2.0 - log_ndtr(x)) for x in (z, -z))
    slope = spread * (counts.wrong * of_wrong - right * of_right).sum(axis=1) - v
    curvature = counts.wrong * of_wrong * (of_wrong + z) + right * of_right * (of_right - z)
    return slope, 1.0 + spread**2 * curvature.sum(axis=1)


def _covariance(theta: FloatArray, counts: _Counts) -> FloatArray:
    """Return the inverse of the second derivatives (4, 4), by central differences."""
    n, posterior = theta.size, _NegLogPosterior(counts)
    steps = STEP * np.eye(n)
    found = np.empty((n, n))
    for i in range(n):
        for k in range(i + 1):
            around = [
                s * t * posterior(theta + s * steps[i] + t * steps[k])
                for s in (1, -1)
                for t in (1, -1)
            ]
            found[i, k] = found[k, i] = sum(around) / (4.0 * STEP**2)
    # The variance along no direction exceeds the largest of the prior.
    values, vectors = np.linalg.eigh(found)
    return (vectors / np.maximum(values, PRIOR_SD.max() ** -2)) @ vectors.T
