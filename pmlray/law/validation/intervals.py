"""Intervals of a law's parameters from posterior samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pmlray.law.data import FloatArray
from pmlray.law.forms.protocol import Law

_LOG_NAMES = {"log_coef": "coef", "log_sharpness": "sharpness", "log_break_rank": "break_rank"}


def param_intervals(
    law: Law, samples: FloatArray, level: float = 0.9
) -> Mapping[str, tuple[float, float]]:
    """Return the central intervals of the named parameters from samples (n, P).

    `coef`, `sharpness` and `break_rank` are given as themselves, not as their logarithms; terms of
    the drift are left out.
    """
    drift_names = () if law.drift is None else law.drift.names
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    intervals: dict[str, tuple[float, float]] = {}
    for name, a, b in zip(law.param_names, low.tolist(), high.tolist(), strict=True):
        if name in drift_names:
            continue
        if name in _LOG_NAMES:
            intervals[_LOG_NAMES[name]] = (float(np.exp(a)), float(np.exp(b)))
        else:
            intervals[name] = (a, b)
    return intervals
