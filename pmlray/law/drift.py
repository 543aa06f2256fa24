"""How a law's exponents change away from the middle of its points, and beyond them.

No power law says so of itself, but no form is quite true (the discrepancy of Kennedy and O'Hagan
2001, doi:10.1111/1467-9868.00294). Among the points the logarithm of the amplitude is quadratic in
log rank, log length and log steps, as the translog function of Christensen, Jorgenson and Lau
(1973, doi:10.2307/1927992), which points can show. Beyond them that bend ends, since it is a
property of the points and not of the law, and an exponent may be another one, which no point can
show: that is all doubt, and it grows with the distance from them.

Shapes: N points, Q terms of the drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray

CURVES = ("rank_drift", "rank_len_drift", "len_drift")
BUDGET_CURVES = ("rank_budget_drift", "len_budget_drift", "budget_drift")
AXES = ("rank", "len", "budget")
# Where along an axis a crossing is looked for, in logarithms from the middle of the points.
SCAN = np.linspace(-14.0, 14.0, 281)
REFINEMENTS = 40


@dataclass(frozen=True, slots=True)
class Drift:
    """What multiplies a law's amplitude: the exponential of `coefs` times `terms`.

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
        """How many of the terms are quadratic."""
        return 3 if len(self.low) == 2 else 6

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms (Q,)."""
        ends = [f"{axis}_{end}" for axis in AXES[: len(self.low)] for end in ("above", "below")]
        return (*(CURVES + BUDGET_CURVES)[: self.n_curves], *ends)

    def terms(self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike) -> FloatArray:
        """Derivatives of the log amplitude by `coefs`, broadcast over the arguments, (..., Q)."""
        axes = [np.log(lora_rank) - self.log_rank, self.log_len - np.log(seq_len)]
        if len(self.low) == 3:
            axes.append(np.log(np.asarray(train_steps, dtype=float)) - self.log_steps)
        axes = np.broadcast_arrays(*axes)
        u, v, *rest = (
            np.clip(axis, low, high)
            for axis, low, high in zip(axes, self.low, self.high, strict=True)
        )
        found = [u * u, u * v, v * v]
        for s in rest:
            found += [u * s, v * s, s * s]
        for axis, low, high in zip(axes, self.low, self.high, strict=True):
            found += [np.maximum(axis - high, 0.0), np.minimum(axis - low, 0.0)]
        return np.stack(found, axis=-1)

    def log_factor(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """What is added to the log amplitude, broadcast over the arguments."""
        return self.terms(lora_rank, seq_len, train_steps) @ np.array(self.coefs)


def drift_from_json(stored: Any) -> Drift | None:
    """The drift in a stored law; None where there is none."""
    if stored is None:
        return None
    middle = (stored["log_rank"], stored["log_len"], stored["log_steps"])
    edges = (tuple(stored["low"]), tuple(stored["high"]))
    return Drift(*middle, *edges, tuple(stored["coefs"]))


def rising_place(value: Callable[[FloatArray], FloatArray], wanted: float) -> float:
    """The first x within SCAN at which a function rises through what is wanted.

    -inf where it is above all along, inf where it never rises there.
    """
    above = value(SCAN) >= wanted
    rises = np.flatnonzero(~above[:-1] & above[1:])
    if not rises.size:
        return -np.inf if above.all() else np.inf
    low, high = SCAN[rises[0]], SCAN[rises[0] + 1]
    for _ in range(REFINEMENTS):
        middle = 0.5 * (low + high)
        if float(value(np.array(middle))) >= wanted:
            high = middle
        else:
            low = middle
    return float(high)
