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


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a method's figure minus SFT's, with its central 95 % interval over `n` texts.

    The interval is None with a single text.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_over_texts(of_text: Mapping[int, Sequence[float]]) -> Difference | None:
    """Return the mean of differences that each text has some of; None without a text.

    of_text: a text's differences by its sequence_id.
    """
    if not of_text:
        return None
    per_text = np.array([np.mean(values) for values in of_text.values()])
    n, mean = per_text.size, float(per_text.mean())
    if n == 1:
        return Difference(mean, None, None, 1)
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1) * per_text.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - half, mean + half, n)
