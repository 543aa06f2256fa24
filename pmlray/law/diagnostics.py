"""How well a law describes its points, and points it has not seen."""

from __future__ import annotations

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import FloatArray, IntArray, LawData
from pmlray.law.fit import FitStatus, LawFit, censored_points, fit_law, usable_points
from pmlray.law.problem import Targets, build_problem
from pmlray.law.protocol import Form, Law
from pmlray.law.robust import FitOptions

# Leaving out one of fewer cells would test the weak prior, not the points.
MIN_CELLS = 4


def r2(data: LawData, fit: LawFit) -> float | None:
    """Share of delta_loss's variance explained over the points of the fit; None if constant."""
    y = data.subset(usable_points(data, fit.law.form, fit.options)).delta_loss
    spread = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - fit.rss / spread if spread > 0 else None


def mape(data: LawData, fit: LawFit) -> float | None:
    """Mean absolute error of delta_loss as a share of it, over the points fitted as measured."""
    used = data.subset(usable_points(data, fit.law.form, fit.options))
    measured = used.subset(~censored_points(used, fit.law.form, fit.options))
    return mean_error(_share_errors(fit.law, measured))


def heldout_mape(data: LawData, form: Form, options: FitOptions | None = None) -> float | None:
    """MAPE (a fraction) of design cells left out one at a time; None with fewer than 4 cells.

    Points that the form's filter sets aside are neither fitted nor predicted, and those that
    `options` censor are not predicted. Raises FitError when the form cannot be fitted at all.
    """
    return mean_error(heldout_errors(data, fit_law(data, form, options=options)))


def extrapolation_mape(
    data: LawData, form: Form, options: FitOptions | None = None
) -> float | None:
    """MAPE (a fraction) at the largest length and at the largest rank, fitted to the smaller ones.

    The mean of both, or the one that can be had; None when too few points remain for either. Points
    that the form's filter sets aside are neither fitted nor predicted, and those that `options`
    censor are not predicted.
    """
    by_axis = [mean_error(errors) for errors in extrapolation_errors(data, form, options=options)]
    known = [error for error in by_axis if error is not None]
    return float(np.mean(known)) if known else None


def mean_error(errors_N: FloatArray) -> float | None:
    """Mean of the errors that are not NaN; None when there is none."""
    known = errors_N[~np.isnan(errors_N)]
    return float(known.mean()) if known.size else None


def heldout_errors(data: LawData, fit: LawFit) -> FloatArray:
    """Share error of each point (N,) by the law refitted without its cell, NaN if skipped."""
    return _share(heldout_predictions(data, fit, data.cells()), data)


def sequence_errors(data: LawData, fit: LawFit) -> FloatArray:
    """Share error of each point (N,) by the law refitted without its sequence, NaN if skipped.

    A sequence is a (sequence, seed) cluster: the error is that of a text the law never saw. All NaN
    where no cluster has two points, since nothing then tells sequences from single runs.
    """
    if np.unique(data.cluster).size == len(data):
        return np.full(len(data), np.nan)
    return _share(heldout_predictions(data, fit, data.cluster), data)


def heldout_predictions(data: LawData, fit: LawFit, groups: IntArray) -> FloatArray:
    """delta_loss of each point (N,), nats per token, by the law refitted without its group.

    groups: an id for each point (N,). NaN where a point is not fitted or is a lower bound only, or
    where what is left without its group no longer identifies the law. The weights of the other
    points, and the values that stand for lower bounds, stay those of the fit.
    """
    used = usable_points(data, fit.law.form, fit.options)
    predicted = np.full(len(data), np.nan)
    points = data.subset(used)
    ids, group = np.unique(groups[used], return_inverse=True)
    kept = group.reshape(-1)[None] != np.arange(ids.size)[:, None]
    problem = build_problem(points, fit.law.form)
    weight = fit.sigma if fit.status is FitStatus.UNDERDETERMINED else 0.0
    least = MIN_CELLS - 1 if weight > 0 else max(MIN_CELLS - 1, problem.n_params)
    cells = points.cells()
    able = np.array(
        [
            np.unique(cells[k]).size >= least and (weight > 0 or _varied(points.subset(k)))
            for k in kept
        ]
    )
    if not able.any():
        return predicted
    kept = kept[able]
    everything = problem.targets(weight).repeated(len(kept))
    without_one = Targets(
        np.repeat(fit.values[None], len(kept), axis=0),
        kept * np.sqrt(fit.weights),
        everything.prior_BP,
        weight,
    )
    start = np.repeat(problem.theta(fit.law)[None], len(kept), axis=0)
    theta = problem.solve(start, without_one).theta_BP
    of_points = np.full(len(points), np.nan)
    for i in np.flatnonzero(np.all(np.isfinite(theta), axis=1)).tolist():
        left = points.subset(~kept[i])
        of_points[~kept[i]] = problem.law(theta[i]).predict(
            left.lora_rank, left.seq_len, left.train_steps, left.base_loss
        )
    of_points[censored_points(points, fit.law.form, fit.options)] = np.nan
    predicted[used] = of_points
    return predicted


def extrapolation_errors(
    data: LawData, form: Form, start: Law | None = None, options: FitOptions | None = None
) -> tuple[FloatArray, FloatArray]:
    """Share errors (N,) of the points at the largest length, and at the largest rank.

    The law is fitted to the points below; NaN where a point is not predicted. `start`, the law of
    all points, is where that fit begins instead of at its grid of starts.
    """
    options = options or FitOptions()
    return (
        _errors_beyond(data, form, start, options, data.seq_len),
        _errors_beyond(data, form, start, options, data.lora_rank),
    )


def _errors_beyond(
    data: LawData, form: Form, start: Law | None, options: FitOptions, axis: FloatArray
) -> FloatArray:
    used = usable_points(data, form, options)
    errors = np.full(len(data), np.nan)
    if not used.any():
        return errors
    beyond = used & (axis == axis[used].max())
    below = data.subset(used & ~beyond)
    if len(below) == 0:
        return errors
    try:
        fit = fit_law(below, form, start=start, options=options)
    except FitError:
        return errors
    measured = beyond & ~censored_points(data, form, options)
    if len(below) > fit.law.params.size and _varied(below):
        errors[measured] = _share_errors(fit.law, data.subset(measured))
    return errors


def _varied(data: LawData) -> bool:
    return np.unique(data.lora_rank).size > 1 and np.unique(data.seq_len).size > 1


def _share_errors(law: Law, points: LawData) -> FloatArray:
    """|predicted - measured| / |measured| (N,), NaN where nothing was measured to share."""
    predicted = law.predict(points.lora_rank, points.seq_len, points.train_steps, points.base_loss)
    return _share(predicted, points)


def _share(predicted_N: FloatArray, points: LawData) -> FloatArray:
    size = np.where(points.delta_loss == 0, np.nan, np.abs(points.delta_loss))
    return np.abs(predicted_N - points.delta_loss) / size
