"""Medians, spreads, paired ratios and growth exponents of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TypedDict

import numpy as np


class Spread(TypedDict):
    """A median, with the least and the largest of n repeats."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of one or more repeats."""
    return Spread(median=median(values), low=min(values), high=max(values), n=len(values))


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """over / under of every round of turns: both met what the machine did in that round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Least-squares slope of log cost over log size; None of fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
