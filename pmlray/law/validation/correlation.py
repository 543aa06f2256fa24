"""Correlation of a fit's parameters: those that cannot be told apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pmlray.law.data import FloatArray
from pmlray.law.fitting.fit import LawFit

# Of two parameters correlated more closely than this, a fit knows only a combination well.
ENTANGLED = 0.95


@dataclass(frozen=True, slots=True)
class EntangledPair:
    """Two strongly correlated parameters, of which only a combination is well known."""

    first: str
    second: str
    correlation: float


def param_correlations(fit: LawFit) -> FloatArray:
    """Return the correlations (P, P) of `fit.law.params` by `fit.cov`; NaN off the diagonal where
    an exact fit leaves a parameter no variance."""
    size = np.sqrt(np.diag(fit.cov))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = fit.cov / np.outer(size, size)
    np.fill_diagonal(correlation, 1.0)
    return np.where(np.isfinite(correlation), np.clip(correlation, -1.0, 1.0), np.nan)


def entangled_pairs(fit: LawFit, above: float = ENTANGLED) -> tuple[EntangledPair, ...]:
    """Return the pairs of parameters whose |correlation| exceeds `above`, the closest first."""
    names, correlation = fit.law.param_names, param_correlations(fit)
    pairs = [
        EntangledPair(names[i], names[j], float(correlation[i, j]))
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if not math.isnan(correlation[i, j]) and abs(correlation[i, j]) > above
    ]
    return tuple(sorted(pairs, key=lambda pair: -abs(pair.correlation)))
