"""Change of a law's exponents away from the middle of its points, and beyond them.

A power law has no such change, but no form is exactly true (the discrepancy of Kennedy and O'Hagan
2001, doi:10.1111/1467-9868.00294). Among the points the logarithm of the amplitude is quadratic in
log rank, log length and log steps, as the translog function of Christensen, Jorgenson and Lau
(1973, doi:10.2307/1927992), and the points inform its terms. Beyond them the quadratic terms stop
growing, since they describe the points and not the law, and each exponent may change by an amount
that no point informs: it only adds uncertainty, which grows with the distance from the points.

Shapes: N points, Q terms of the drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray

CURVES = ("rank_drift", "rank_len_drift", "len_drift")
BUDGET_CURVES = ("rank_budget_drift", "len_budget_drift", "budget_drift")
AXES = ("rank", "len", "budget")
# Range of the search for a crossing along an axis, in logarithms from the middle of the points.
REACH = 14.0


@dataclass(frozen=True, slots=True)
class Drift:
    """Factor on a law's amplitude: the exponential of `coefs` times `terms`.

    `log_rank`, `log_len`, `log_steps`: the middle of the points, natural logarithms. With u = log r
    - log_rank, v = log_len - log l and s = log t - log_steps the terms are u^2, u v, v^2 (and u s,
    v s, s^2 where steps were varied) of u, v and s held within `low` and `high`, the ends of the
    points, then for each of u, v (and s) how far it lies above and below these.
    """

    log_rank: float
    log_len: float
    log_steps: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    coefs: tuple[float, ...]

    @property
    def n_curves(self) -> int:
        """Number of quadratic terms."""
        return 3 if len(self.low) == 2 else 6

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms (Q,)."""
        ends = [f"{axis}_{end}" for axis in AXES[: len(self.low)] for end in ("above", "below")]
        return (*(CURVES + BUDGET_CURVES)[: self.n_curves], *ends)

    def terms(self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike) -> FloatArray:
        """Return the derivatives of the log amplitude by `coefs`, broadcast over the arguments,
        (..., Q)."""
        return self.terms_at(*self.axes(lora_rank, seq_len, train_steps))

    def axes(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> list[FloatArray]:
        """Return u, v (and s) of the arguments, before they are held within the points."""
        axes = [np.log(lora_rank) - self.log_rank, self.log_len - np.log(seq_len)]
        if len(self.low) == 3:
            axes.append(np.log(np.asarray(train_steps, dtype=float)) - self.log_steps)
        return axes

    def terms_at(self, *axes: FloatArray) -> FloatArray:
        """Return `terms` at given u, v (and s)."""
        axes = np.broadcast_arrays(*axes)
        u, v, *rest = self._within(axes)
        found = [u * u, u * v, v * v]
        for s in rest:
            found += [u * s, v * s, s * s]
        for axis, low, high in zip(axes, self.low, self.high, strict=True):
            found += [np.maximum(axis - high, 0.0), np.minimum(axis - low, 0.0)]
        return np.stack(found, axis=-1)

    def rank_slopes(self, *axes: FloatArray) -> FloatArray:
        """Return the derivatives of `terms_at` by u, (..., Q)."""
        axes = np.broadcast_arrays(*axes)
        u, v, *rest = self._within(axes)
        nothing = np.zeros_like(u)
        found = [2.0 * u, v, nothing]
        for s in rest:
            found += [s, nothing, nothing]
        among = (axes[0] >= self.low[0]) & (axes[0] <= self.high[0])
        found = [slope * among for slope in found]
        found += [(axes[0] > self.high[0]) + nothing, (axes[0] < self.low[0]) + nothing]
        found += [nothing, nothing] * (len(axes) - 1)
        return np.stack(found, axis=-1)

    def _within(self, axes: Sequence[FloatArray]) -> list[FloatArray]:
        return [
            np.clip(axis, low, high)
            for axis, low, high in zip(axes, self.low, self.high, strict=True)
        ]

    def log_factor(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """Return the term added to the log amplitude, broadcast over the arguments."""
        return self.terms(lora_rank, seq_len, train_steps) @ np.array(self.coefs)


def drift_from_json(stored: Any) -> Drift | None:
    """Rebuild the drift of a stored law; None where there is none."""
    if stored is None:
        return None
    middle = (stored["log_rank"], stored["log_len"], stored["log_steps"])
    edges = (tuple(stored["low"]), tuple(stored["high"]))
    return Drift(*middle, *edges, tuple(stored["coefs"]))


def rising_place(
    value: Callable[[FloatArray], FloatArray], wanted: float, low: float, high: float
) -> float:
    """Return the first x within REACH of the middle at which a function rises through `wanted`.

    value: continuous, quadratic from low to high and linear beyond, as a drift along one axis. -inf
    where the function is above `wanted` throughout, inf where it never rises through it there.
    """
    left, right = min(-REACH, low - 1.0), max(REACH, high + 1.0)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    places = np.array([left, low, middle, high, right])
    at_left, at_low, at_middle, at_high, at_right = (value(places) - wanted).tolist()
    if at_left < 0.0 <= at_low:
        return low - (low - left) * at_low / (at_low - at_left)
    bend, slope = 0.5 * (at_low + at_high) - at_middle, 0.5 * (at_high - at_low)
    share = _rising_root(bend, slope, at_middle)
    if half > 0.0 and -1.0 <= share <= 1.0:
        return middle + half * share
    if at_high < 0.0 <= at_right:
        return high - (right - high) * at_high / (at_right - at_high)
    return -np.inf if at_right >= 0.0 else np.inf


def _rising_root(bend: float, slope: float, level: float) -> float:
    """Return the root at which bend x^2 + slope x + level rises through 0; nan without one."""
    square = slope * slope - 4.0 * bend * level
    if square <= 0.0:
        return math.nan
    root = math.sqrt(square)
    if slope > 0.0:
        return -2.0 * level / (slope + root)
    return (root - slope) / (2.0 * bend) if bend != 0.0 else math.nan
