"""How a law's exponents change away from the middle of its points.

No power law says so of itself, but no form is quite true (the discrepancy of Kennedy and O'Hagan
2001, doi:10.1111/1467-9868.00294). A power law whose exponents drift has the logarithm of its
amplitude quadratic in log rank, log length and log steps, as the translog function of Christensen,
Jorgenson and Lau (1973, doi:10.2307/1927992). Near the middle of the points it is the power law;
what it leaves open grows with the square of the distance from there.

Shapes: N points, Q terms of the drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray

NAMES = ("rank_drift", "rank_len_drift", "len_drift")
BUDGET_NAMES = ("rank_budget_drift", "len_budget_drift", "budget_drift")


@dataclass(frozen=True, slots=True)
class Drift:
    """The quadratic part of a law's log amplitude, in logarithms from the middle of the points.

    `log_rank`, `log_len`, `log_steps`: that middle, natural logarithms. With u = log r - log_rank,
    v = log_len - log l and s = log t - log_steps the amplitude is multiplied by the exponential of
    `coefs` times (u^2, u v, v^2), and, where there are six of them, (u s, v s, s^2).
    """

    log_rank: float
    log_len: float
    log_steps: float
    coefs: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms (Q,)."""
        return (NAMES + BUDGET_NAMES)[: len(self.coefs)]

    def terms(self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike) -> FloatArray:
        """Derivatives of the log amplitude by `coefs`, broadcast over the arguments, (..., Q)."""
        u = np.log(lora_rank) - self.log_rank
        v = self.log_len - np.log(seq_len)
        if len(self.coefs) == len(NAMES):
            u, v = np.broadcast_arrays(u, v)
            return np.stack([u * u, u * v, v * v], axis=-1)
        s = np.log(np.asarray(train_steps, dtype=float)) - self.log_steps
        u, v, s = np.broadcast_arrays(u, v, s)
        return np.stack([u * u, u * v, v * v, u * s, v * s, s * s], axis=-1)

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
    return Drift(*middle, tuple(stored["coefs"]))


def rising_root(value: float, slope: float, bend: float) -> float:
    """x at which value + slope x + bend x^2 passes 0 as it rises: -inf where it is above 0 all
    along its rise, inf where it never gets there.

    With a bend that is negative the parabola falls again beyond its top: the place before it is
    meant; with one that is positive the place after its lowest point.
    """
    if bend == 0.0:
        if slope > 0.0:
            return -value / slope
        return -math.inf if value >= 0.0 else math.inf
    under_root = slope * slope - 4.0 * bend * value
    if under_root < 0.0:
        return -math.inf if bend > 0.0 else math.inf
    # Both signs of the bend have their rising branch at this root, written without cancellation.
    root = math.sqrt(under_root)
    if slope > 0.0:
        return -2.0 * value / (slope + root)
    return (root - slope) / (2.0 * bend)
