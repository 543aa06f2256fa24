"""MemFT: weights of the supervised tokens in a training step, and their weighted loss."""

from pmlray.memft.curriculum import (
    curriculum_order,
    paper_curriculum,
    prefix_ratio_curriculum,
)
from pmlray.memft.loss import (
    NoActiveTokens,
    fallback_weights,
    weighted_nll,
    weighted_nll_per_row,
)
from pmlray.memft.threshold import threshold_weights
from pmlray.memft.window import NO_ANCHOR, WindowState, window_weights

__all__ = [
    "NO_ANCHOR",
    "NoActiveTokens",
    "WindowState",
    "curriculum_order",
    "fallback_weights",
    "paper_curriculum",
    "prefix_ratio_curriculum",
    "threshold_weights",
    "weighted_nll",
    "weighted_nll_per_row",
    "window_weights",
]
