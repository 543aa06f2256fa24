"""MemFT-SW for many records: a growing prefix of one random order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Epochs 20, 40, 60 and 80 of 300: the paper's Qwen setting at 1,000 tokens.
BOUNDARIES = (20 / 300, 40 / 300, 60 / 300, 80 / 300)
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def curriculum_order(n_records: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which records are added to training: a random permutation, int64
    (n_records,).

    n_records: at least 1; seed: of the draw. The order does not follow difficulty.
    Source: arXiv 2605.30260, which draws it once a run.
    """
    return np.random.default_rng(seed).permutation(n_records)


def prefix_ratio_curriculum(
    n_records: int,
    step: int,
    train_steps: int,
    *,
    boundaries: Sequence[float] = BOUNDARIES,
    ratios: Sequence[float] = RATIOS,
) -> int:
    """Return how many leading records of curriculum_order are trained on at this step.

    n_records: at least 1; step: optimiser steps done, from 0; train_steps: the whole budget;
    boundaries: ascending fractions of train_steps, at each of which the next ratio begins; ratios:
    shares of the records, one more than boundaries. Returns 1 to n_records, rounded down.
    ValueError when the lengths do not agree. Source: the curriculum of arXiv 2605.30260, in steps
    instead of epochs and without rounding to full batches.
    """
    if len(ratios) != len(boundaries) + 1:
        raise ValueError(f"{len(boundaries)} boundaries need {len(boundaries) + 1} ratios")
    ratio = ratios[bisect_right(boundaries, step / train_steps)]
    return max(1, int(n_records * ratio))


def paper_curriculum(n_records: int, step: int, train_steps: int, batch_size: int) -> int:
    """Return the number of leading records by the paper's count: in epochs, and whole batches only.

    batch_size: records in a step, at most n_records. An epoch of a shorter prefix has fewer steps,
    so the boundaries, shares of the epochs, come earlier than as shares of the steps. Returns a
    multiple of batch_size: a prefix below one batch is one batch. Source: memft_curriculum of the
    code of arXiv 2605.30260, with drop_last and without shuffling.
    """
    batches = [max(1, int(n_records * ratio) // batch_size) for ratio in RATIOS]
    edges = (0.0, *BOUNDARIES, 1.0)
    steps = np.cumsum([(edges[k + 1] - edges[k]) * n for k, n in enumerate(batches)])
    # Rounding must not put a boundary behind the step that it falls on.
    ends = steps / steps[-1] * train_steps - 1e-9 * train_steps
    phase = int(np.searchsorted(ends, step, side="right"))
    return batches[min(phase, len(batches) - 1)] * batch_size
