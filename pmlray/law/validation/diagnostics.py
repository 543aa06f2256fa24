"""Goodness of fit at the points that a law was fitted to."""

from __future__ import annotations

import numpy as np

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.fit import LawFit, censored_points, usable_points


def r2(data: LawData, fit: LawFit) -> float | None:
    """Return the share of delta_loss's variance explained over the points of the fit; None if
    constant."""
    y = data.subset(usable_points(data, fit.law.form, fit.options)).delta_loss
    spread = float(np.sum((y - y.mean()) ** 2))
    return 1.0 - fit.rss / spread if spread > 0 else None


def mape(data: LawData, fit: LawFit) -> float | None:
    """Return the mean absolute error of delta_loss as a share of it, over the points fitted as
    measured."""
    used = data.subset(usable_points(data, fit.law.form, fit.options))
    measured = used.subset(~censored_points(used, fit.law.form, fit.options))
    return mean_error(_share_errors(fit, measured))


def mean_error(errors_N: FloatArray) -> float | None:
    """Return the mean of the errors that are not NaN; None when there is none."""
    known = errors_N[~np.isnan(errors_N)]
    return float(known.mean()) if known.size else None


def _share_errors(fit: LawFit, points: LawData) -> FloatArray:
    """Return |predicted - measured| / |measured| (N,), NaN where measured is 0."""
    at = (fit.law_ranks(points), points.seq_len, points.train_steps, points.base_loss)
    predicted = fit.law.predict(*at)
    return _share(predicted, points)


def _share(predicted_N: FloatArray, points: LawData) -> FloatArray:
    size = np.where(points.delta_loss == 0, np.nan, np.abs(points.delta_loss))
    return np.abs(predicted_N - points.delta_loss) / size
