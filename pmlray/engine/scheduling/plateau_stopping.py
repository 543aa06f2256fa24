"""Early decay of runs whose remaining steps would hardly change their loss.

The rule uses the slope of a curve, never its level: a run that ends at a high loss is as
informative to the law as one at a low loss, and must be as likely to be stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmlray.config.recipe import Recipe

# Checking whether a run can end early waits for the device, so it is not done at every step.
STEPS_BETWEEN_LOOKS = 16
# The line is fitted to means of this many equal blocks of steps: fewer would hide the noise, more
# would not be independent.
N_BLOCKS = 8
# Student's t, 97.5 %, with the N_BLOCKS - 2 degrees of freedom of a fitted line.
QUANTILE = 2.447
# A flat curve is extrapolated as far ahead as it was observed, on the logarithmic axis of steps.
LONGEST_AHEAD = 2


def can_stop(recipe: Recipe, steps: int, train_steps: int) -> bool:
    """Return whether a run of `train_steps` may begin its decay early after `steps`, if flat."""
    decay = recipe.decay_start(train_steps)
    # `shares_trunks` holds exactly where the first steps are taken at a constant rate.
    constant = recipe.shares_trunks and steps // 2 >= recipe.warmup_steps
    return recipe.stop_gain > 0 and constant and steps < decay <= LONGEST_AHEAD * steps


def broken_runs(step_losses: Tensor, steps: int, active: Sequence[int]) -> list[int]:
    """Return the active runs whose last loss is not finite; none on steps without a check.

    step_losses: nats per token of every step and run, (steps, N).
    """
    if steps == 0 or steps % STEPS_BETWEEN_LOOKS:
        return []
    is_number_N = torch.isfinite(step_losses[steps - 1]).tolist()
    return [i for i in active if not is_number_N[i]]


def largest_change(losses: Sequence[float], steps: int, until: int, epoch: int) -> float:
    """Return an upper limit on a loss's change, up or down, between `steps` and `until`, in nats.

    losses: of the last steps / 2 of `steps` optimiser steps, nats per token, before each update.
    epoch: steps in which every record is used once; only whole epochs are compared. Lines in
    log(step) through the last half and through the last quarter are extrapolated, each with the
    97.5 % limit of its slope by the scatter around it, and the larger change counts: the last
    quarter shows a curve that has begun to bend. inf where the steps hold too few epochs.
    """
    ahead = math.log(until / steps)
    curve = np.asarray(losses, dtype=np.float64)
    return max(_steepest(curve[-n:], steps, epoch) * ahead for n in (steps // 2, steps // 4))


def _steepest(curve: NDArray[np.float64], steps: int, epoch: int) -> float:
    """Return the 97.5 % limit on the absolute slope of a curve that ends after `steps`.

    In nats per unit of log(step).
    """
    block = len(curve) // (N_BLOCKS * epoch) * epoch
    if block == 0:
        return math.inf
    used = N_BLOCKS * block
    at = np.log(np.arange(steps - used, steps)).reshape(N_BLOCKS, block).mean(axis=1)
    y = curve[-used:].reshape(N_BLOCKS, block).mean(axis=1)
    x = at - at.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = math.sqrt(float(left @ left) / (N_BLOCKS - 2) / float(x @ x))
    return abs(slope) + QUANTILE * error
