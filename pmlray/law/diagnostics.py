"""How well a law describes its points, and points it has not seen."""

from __future__ import annotations

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import BoolArray, FloatArray, LawData
from pmlray.law.fit import FitStatus, LawFit, fit_law, usable_points
from pmlray.law.problem import Targets, build_problem
from pmlray.law.protocol import Form, Law

# Leaving out one of fewer cells would test the weak prior, not the points.
MIN_CELLS = 4


def r2(data: LawData, fit: LawFit) -> float | None:
    """Share of delta_loss's variance explained over the points of the fit; None if constant."""
    y = data.subset(usable_points(data, fit.law.form, fit.options)).delta_loss
    spread = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - fit.rss / spread if spread > 0 else None


def mape(data: LawData, fit: LawFit) -> float | None:
    """Mean absolute error of delta_loss as a share of it, over the points that the fit used."""
    used = data.subset(usable_points(data, fit.law.form, fit.options))
    return mean_error(_share_errors(fit.law, used))


def heldout_mape(data: LawData, form: Form) -> float | None:
    """MAPE (a fraction) of design cells left out one at a time; None with fewer than 4 cells.

    Points that the form's filter sets aside are neither fitted nor predicted. Raises FitError when
    the form cannot be fitted at all.
    """
    return mean_error(heldout_errors(data, fit_law(data, form)))


def extrapolation_mape(data: LawData, form: Form) -> float | None:
    """MAPE (a fraction) at the largest length and at the largest rank, fitted to the smaller ones.

    The mean of both, or the one that can be had; None when too few points remain for either. Points
    that the form's filter sets aside are neither fitted nor predicted.
    """
    by_axis = [mean_error(errors) for errors in extrapolation_errors(data, form)]
    known = [error for error in by_axis if error is not None]
    return float(np.mean(known)) if known else None


def mean_error(errors_N: FloatArray) -> float | None:
    """Mean of the errors that are not NaN; None when there is none."""
    known = errors_N[~np.isnan(errors_N)]
    return float(known.mean()) if known.size else None


def heldout_errors(data: LawData, fit: LawFit) -> FloatArray:
    """Share error of each point (N,) by the law refitted without its cell, NaN if skipped."""
    used = usable_points(data, fit.law.form, fit.options)
    errors = np.full(len(data), np.nan)
    points = data.subset(used)
    cells = points.cells()
    n_cells = int(cells.max()) + 1
    if n_cells < MIN_CELLS:
        return errors
    problem = build_problem(points, fit.law.form)
    weight = fit.sigma if fit.status is FitStatus.UNDERDETERMINED else 0.0
    if weight == 0.0 and n_cells <= problem.n_params:
        return errors
    kept = (cells[None] != np.arange(n_cells)[:, None]).astype(float)
    everything = problem.targets(weight).repeated(n_cells)
    without_one = Targets(everything.y_BN, kept, everything.prior_BP, weight)
    start = np.repeat(problem.theta(fit.law)[None], n_cells, axis=0)
    theta = problem.solve(start, without_one).theta_BP
    of_points = np.full(len(points), np.nan)
    for cell in np.flatnonzero(np.all(np.isfinite(theta), axis=1)).tolist():
        members = cells == cell
        of_points[members] = _share_errors(problem.law(theta[cell]), points.subset(members))
    errors[used] = of_points
    return errors


def extrapolation_errors(
    data: LawData, form: Form, start: Law | None = None
) -> tuple[FloatArray, FloatArray]:
    """Share errors (N,) of the points at the largest length, and at the largest rank.

    The law is fitted to the points below; NaN where a point is not predicted. `start`, the law of
    all points, is where that fit begins instead of at its grid of starts.
    """
    used = usable_points(data, form)
    return (
        _errors_beyond(data, form, start, used, data.seq_len),
        _errors_beyond(data, form, start, used, data.lora_rank),
    )


def _errors_beyond(
    data: LawData, form: Form, start: Law | None, used: BoolArray, axis: FloatArray
) -> FloatArray:
    errors = np.full(len(data), np.nan)
    if not used.any():
        return errors
    beyond = used & (axis == axis[used].max())
    below = data.subset(used & ~beyond)
    if len(below) == 0:
        return errors
    try:
        fit = fit_law(below, form, start=start)
    except FitError:
        return errors
    if len(below) > fit.law.params.size and _varied(below):
        errors[beyond] = _share_errors(fit.law, data.subset(beyond))
    return errors


def _varied(data: LawData) -> bool:
    return np.unique(data.lora_rank).size > 1 and np.unique(data.seq_len).size > 1


def _share_errors(law: Law, points: LawData) -> FloatArray:
    """|predicted - measured| / |measured| (N,), NaN where nothing was measured to share."""
    predicted = law.predict(points.lora_rank, points.seq_len, points.train_steps, points.base_loss)
    size = np.where(points.delta_loss == 0, np.nan, np.abs(points.delta_loss))
    return np.abs(predicted - points.delta_loss) / size
