"""Loss without an adapter as a function of length: the largest possible loss reduction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.run_noise import FLOOR_SHARE

# With fewer lengths a slope would only show the difference between two texts.
LEAST_LENGTHS = 3
# Lower bound of the extrapolated line, as a share of the typical base loss.
LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class BaseTrend:
    """Base loss, nats per token, as a line in log length; short texts are harder to predict.

    `level` at `log_len`, `slope` by natural logarithm of the length. `typical`: the median of all.
    `sd`: the spread of texts about the line. `known` is False where no base loss is: then the
    largest delta_loss measured takes its place, as nothing says where a rising law ends.
    """

    level: float
    slope: float
    log_len: float
    typical: float
    sd: float
    n_texts: int
    known: bool

    def at(self, seq_len: ArrayLike) -> FloatArray:
        """Return the mean base loss of texts of a length, nats per token, in the argument's
        shape."""
        line = self.level + self.slope * (np.log(np.asarray(seq_len, dtype=float)) - self.log_len)
        return np.maximum(line, LEAST_SHARE * self.typical)


def base_trend(data: LawData) -> BaseTrend:
    """Fit the trend of the points' base losses; a constant, the largest delta_loss, where none is
    known."""
    known = data.subset(np.isfinite(data.base_loss))
    if not len(known):
        most = float(np.max(data.delta_loss))
        return BaseTrend(most, 0.0, 0.0, most, FLOOR_SHARE * abs(most), 1, known=False)
    log_len, base = np.log(known.seq_len), known.base_loss
    typical, middle = float(np.median(base)), float(log_len.mean())
    level, slope = typical, 0.0
    if np.unique(log_len).size >= LEAST_LENGTHS:
        slope, level = np.polyfit(log_len - middle, base, 1).tolist()
    off = base - level - slope * (log_len - middle)
    texts, text = np.unique(known.cluster, return_inverse=True)
    of_text = np.bincount(text.reshape(-1), off) / np.bincount(text.reshape(-1))
    spread = float(of_text.std(ddof=1)) if texts.size > 1 else 0.0
    sd = max(spread, FLOOR_SHARE * typical)
    return BaseTrend(level, slope, middle, typical, sd, texts.size, known=True)
