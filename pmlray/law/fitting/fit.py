"""A fitted form of the law, and which points it is fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from pmlray.law.data import BoolArray, FloatArray, LawData
from pmlray.law.fitting.run_noise import RunNoise
from pmlray.law.forms.protocol import Form, Law
from pmlray.law.forms.registry import CAPPED


class FitStatus(StrEnum):
    """Verdict on a law where it is asked about; the message gives the reason."""

    CONVERGED = "CONVERGED"
    UNDERDETERMINED = "UNDERDETERMINED"


# Beyond so much noise a point counts as an outlier: 95 % efficiency under normal noise (Huber 1981,
# Robust Statistics, doi:10.1002/0471725250).
HUBER_K = 1.345


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Treatment of points in a fit.

    `loss`: `gaussian`, or `huber`, which takes the noise of a point beyond 1.345 of it larger, so
    that an outlier bends no law. `saturated`: `censor` takes from points that are saturated only
    that delta_loss is at least what was measured: those with final_loss <= ln 2 where a form has no
    ceiling, those at or below `floor` nats where it has one. `filter` sets the former aside, as the
    paper does, and keeps the latter, which hardly count as they are.
    """

    loss: Literal["gaussian", "huber"] = "gaussian"
    saturated: Literal["filter", "censor"] = "filter"
    floor: float = 0.02


@dataclass(frozen=True, slots=True)
class LawFit:
    """The likeliest law of one form with what is needed to judge it.

    `cov` (P, P) is the covariance of `law.params` after the points, by Laplace's approximation.
    `noise` is that of single runs at its likeliest size, and `rss` the sum of squared residuals,
    nats^2 per token. `n_obs` points were fitted; `n_censored` are saturated ones, set aside or
    taken as lower bounds as `options` say. `values` (N,) stand for the fitted points' delta_loss,
    measured or, where censored, at least that; `weights` (N,) are the noise's sigma^2 over their
    variance. `condition_number` is that of the points' information, scaled to a unit diagonal;
    `unidentified` names the parameters that the points leave as open as they were before.
    """

    law: Law
    cov: FloatArray
    noise: RunNoise
    rss: float
    n_obs: int
    n_censored: int
    status: FitStatus
    message: str
    options: FitOptions
    values: FloatArray
    weights: FloatArray
    condition_number: float
    unidentified: tuple[str, ...]

    @property
    def sigma(self) -> float:
        """A run's noise as a share of what it memorised."""
        return self.noise.sigma


def usable_points(data: LawData, form: Form, options: FitOptions | None = None) -> BoolArray:
    """The points (N,) that a form is fitted to.

    An uncapped form has no ceiling, so points with final_loss <= ln 2 are set aside, as in the
    paper (arXiv 2605.30260, filter of its fits), unless `options` censor them. The capped forms
    keep all points.
    """
    if form in CAPPED or (options or FitOptions()).saturated == "censor":
        return np.ones(len(data), dtype=bool)
    return ~saturated_points(data, math.log(2.0))


def censored_points(points: LawData, form: Form, options: FitOptions) -> BoolArray:
    """Return the points (N,) that a form's fit takes as lower bounds only."""
    if options.saturated == "filter":
        return np.zeros(len(points), dtype=bool)
    return saturated_points(points, options.floor if form in CAPPED else math.log(2.0))


def saturated_points(data: LawData, floor: float) -> BoolArray:
    """The points (N,) with final_loss <= floor nats per token; base_loss - delta_loss where
    final_loss is unknown, and none where both are."""
    implied = data.base_loss - data.delta_loss
    final = np.where(np.isnan(data.final_loss), implied, data.final_loss)
    return final <= floor
