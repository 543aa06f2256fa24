"""A fitted form of the law, and the points that it is fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import BoolArray, FloatArray, IntArray, LawData
from pmlray.law.fitting.run_noise import RunNoise
from pmlray.law.fitting.site_effects import FittedPlaces, Worth
from pmlray.law.forms.protocol import Form, Law
from pmlray.law.forms.registry import CAPPED
from pmlray.law.forms.rescaled import in_ranks_of, rank_slope
from pmlray.law.placements import Placement


class FitStatus(StrEnum):
    """Verdict on a law at its targets; the message gives the reason."""

    CONVERGED = "CONVERGED"
    UNDERDETERMINED = "UNDERDETERMINED"


# Beyond so much noise a point counts as an outlier: 95 % efficiency under normal noise (Huber 1981,
# Robust Statistics, doi:10.1002/0471725250).
HUBER_K = 1.345


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Treatment of outlying and saturated points in a fit.

    Args:
        loss: `gaussian`, or `huber`, which raises the noise of a point whose residual is beyond
            1.345 times its noise, so that an outlier has less weight.
        saturated: `filter` leaves points with final_loss <= ln 2 out of forms without a ceiling, as
            the paper does, and fits forms with one to all points. `censor` takes saturated points
            as lower bounds of delta_loss: those with final_loss <= ln 2 in forms without a ceiling,
            those at or below `floor` in forms with one.
        floor: final loss, nats per token, at which `censor` begins in forms with a ceiling.
        worth: what tells placements apart where there are several: `pooled`, kinds and depths of
            their sites and a deviation of each placement's own; `sites`, without the deviations;
            `one_factor`, these alone; `parameters`, nothing.

    Example:
        >>> data = read_law_data("searches/tables/smollm2_phonebook.csv")
        >>> law = fit_law(data, "ceiling", options=FitOptions(loss="huber", saturated="censor"))
        >>> law.fit.n_censored > 0
        True
    """

    loss: Literal["gaussian", "huber"] = "gaussian"
    saturated: Literal["filter", "censor"] = "filter"
    floor: float = 0.02
    worth: Worth = "pooled"


@dataclass(frozen=True, slots=True)
class LawFit:
    """Likeliest law of one form with its diagnostics.

    `cov` (P, P) is the posterior covariance of `law.params`, by Laplace's approximation. `noise` is
    that of single runs at its likeliest size, and `rss` the sum of squared residuals, nats^2 per
    token. `n_obs` points were fitted; `n_censored` are saturated, left out or taken as lower bounds
    as `options` say. `values` (N,) are the delta_loss of the fitted points, measured or, where
    censored, at least that; `weights` (N,) are the noise's sigma^2 over their variance.
    `condition_number` is that of the points' information, scaled to a unit diagonal; `unidentified`
    names the parameters about which the points say little beyond the prior. `places`: what a
    parameter is worth by placement, where the points say theirs; `law` is that of the reference's
    ranks.
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
    places: FittedPlaces | None = None

    def law_at(self, placement: Placement) -> Law:
        """Return the law in a placement's own ranks, which may have had no points."""
        if self.places is None:
            raise DataError(
                "the points of this law do not say where their adapters sit, so nothing tells what"
                f" {placement.name!r} is worth"
            )
        return in_ranks_of(self.law, self.places.log_factor(placement))

    def law_ranks(self, points: LawData) -> FloatArray:
        """Return the ranks (N,) of the reference placement that points' adapters are worth, for
        points with the placements of the fit."""
        if self.places is None or points.placement is None or not points.several_placements:
            return points.lora_rank
        return self.places.law_ranks(points.lora_rank, points.placement)

    @property
    def full_cov(self) -> FloatArray:
        """Posterior covariance of what `jacobian` derives by."""
        if self.places is None or not self.places.several:
            return self.cov
        return self.places.cov

    def jacobian(
        self,
        law_rank: FloatArray,
        seq_len: FloatArray,
        train_steps: FloatArray,
        place_N: IntArray | None,
        base_loss: FloatArray | None = None,
    ) -> FloatArray:
        """Return the derivatives of delta_loss at points by the law's params and, where there are
        several placements, by their effects, (N, P) or (N, P + T).

        law_rank: ranks of the reference that the adapters are worth; place_N: places of their
        placements among the fit's, None for the reference.
        """
        jac = self.law.jacobian(law_rank, seq_len, train_steps, base_loss)
        if self.places is None or not self.places.several:
            return jac
        at = np.zeros(len(jac), dtype=np.int64) if place_N is None else place_N
        _, by_effect_BKT = self.places.effects.log_worths(self.places.effects_T[None])
        by_rank_N = jac[:, 0] * rank_slope(self.law, law_rank, seq_len, train_steps)
        return np.hstack([jac, by_rank_N[:, None] * by_effect_BKT[0][at]])

    @property
    def sigma(self) -> float:
        """Noise of a run as a share of the loss reduction that it memorised."""
        return self.noise.sigma


def usable_points(data: LawData, form: Form, options: FitOptions | None = None) -> BoolArray:
    """Return the points (N,) that a form is fitted to.

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
    """Return the points (N,) with final_loss <= floor nats per token. An unknown final_loss is
    taken as base_loss - delta_loss; where both are unknown the point counts as not saturated."""
    implied = data.base_loss - data.delta_loss
    final = np.where(np.isnan(data.final_loss), implied, data.final_loss)
    return final <= floor
