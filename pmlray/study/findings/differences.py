"""Differences between methods with their interval over texts.

Texts are independent of each other, seeds and points of one text are not: differences are averaged
over these first, and their interval is Student's over texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

LEVEL = 0.95
# Standard error, relative or of a share, below which differences are equal but for rounding.
ALIKE = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a method's figure minus SFT's, with its central 95 % interval over `n` texts.

    p_value: of Student's test that texts differ by nothing on average, two-sided. It and the
    interval are None with a single text, and where all texts differ alike: neither tells how much
    further texts would scatter.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p_value: float | None = None


def mean_over_texts(
    of_text: Mapping[int, Sequence[float]], *, shares: bool = False
) -> Difference | None:
    """Return the mean of differences that each text has some of; None without a text.

    of_text: a text's differences by its sequence_id. shares: they are differences of shares, so
    that no interval reaches beyond -1 and 1, however few the texts.
    """
    if not of_text:
        return None
    per_text = np.array([np.mean(values) for values in of_text.values()])
    n, mean = per_text.size, float(per_text.mean())
    if n == 1:
        return Difference(mean, None, None, n)
    error = float(per_text.std(ddof=1)) / math.sqrt(n)
    if error < ALIKE * max(1.0, abs(mean)):
        return Difference(mean, None, None, n)
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p_value = 2 * float(scipy.stats.t.sf(abs(mean) / error, n - 1))
    low, high = mean - half, mean + half
    if shares:
        low, high = max(low, -1.0), min(high, 1.0)
    return Difference(mean, low, high, n, p_value)
