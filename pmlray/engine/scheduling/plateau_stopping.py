"""Early decay of runs whose remaining steps would hardly move their loss.

The rule looks at how flat a curve is, never at how high: a run that stays bad tells the law as much
as one that gets good, and must be as likely to be stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmlray.config.recipe import Recipe

# Looking whether a run can end early waits for the device, so it is done only so often.
STEPS_BETWEEN_LOOKS = 16
# Means of so many equal stretches are fitted: fewer hide the noise, more are not independent.
N_BLOCKS = 8
# Student's t, 97.5 %, of the N_BLOCKS - 2 degrees of freedom that a line leaves.
QUANTILE = 2.447
# A run is flat for as long again as it has been flat, on the logarithmic axis of steps.
LONGEST_AHEAD = 2


def can_stop(recipe: Recipe, steps: int, train_steps: int) -> bool:
    """Return whether a run of `train_steps` may begin its decay early after `steps`, if it is
    flat."""
    decay = recipe.decay_start(train_steps)
    # Schedules share their first steps just where these are taken at a constant rate.
    constant = recipe.shares_trunks and steps // 2 >= recipe.warmup_steps
    return recipe.stop_gain > 0 and constant and steps < decay <= LONGEST_AHEAD * steps


def broken_runs(step_losses: Tensor, steps: int, active: Sequence[int]) -> list[int]:
    """Return the active runs whose last loss is not a number, on steps where that is checked.

    step_losses: nats per token of every step and run, (steps, N).
    """
    if steps == 0 or steps % STEPS_BETWEEN_LOOKS:
        return []
    is_number_N = torch.isfinite(step_losses[steps - 1]).tolist()
    return [i for i in active if not is_number_N[i]]


def largest_change(losses: Sequence[float], steps: int, until: int, epoch: int) -> float:
    """Upper limit of how far a loss moves, up or down, between `steps` and `until`, in nats.

    losses: of the last steps / 2 of `steps` optimiser steps, nats per token, before each update.
    epoch: steps in which every record has its part once; only whole epochs are compared. A line in
    log(step) through the last half and one through the last quarter are carried on, each with its
    slope's 97.5 % limit by the scatter around it, and the one that moves more counts: a curve that
    has begun to bend is told by its end. inf where the steps do not hold enough epochs.
    """
    ahead = math.log(until / steps)
    curve = np.asarray(losses, dtype=np.float64)
    return max(_steepest(curve[-n:], steps, epoch) * ahead for n in (steps // 2, steps // 4))


def _steepest(curve: NDArray[np.float64], steps: int, epoch: int) -> float:
    """Largest plausible slope of a curve that ends after `steps`, nats per unit of log(step)."""
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
