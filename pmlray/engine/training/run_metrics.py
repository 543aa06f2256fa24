"""What the loop measured of one adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pmlray.engine.evaluation.scores import TokenScores

# An adapter that ends so far above the bare base's loss has diverged; one that has learnt nothing
# ends near it.
MOST_LOSS, SLACK_NATS = 2.0, 1.0


@dataclass(frozen=True)
class TrainedMember:
    """What the loop measured of one adapter.

    `step_losses`: mean nll of each optimiser step's batch, before its update. `curve`: (step,
    loss over all records) after that many steps, from step 0. `gpu_seconds`: what it cost and
    `wall_seconds`: the time that it took, both shared out by work, optimiser steps and curve
    evaluations together; `charged_steps`: the optimiser steps in it, those shared with other
    budgets in part. `grad_norm`: mean norm of
    the gradient before clipping, over the last tenth of the steps before the decay.
    `token_p_curve`: as in `Observation`. `pack_steps`: steps that the pack had had when the member
    ended.
    """

    index: int
    curve: tuple[tuple[int, float], ...]
    step_losses: tuple[float, ...]
    scores: TokenScores
    gpu_seconds: float
    wall_seconds: float
    charged_steps: float
    grad_norm: float
    token_p_curve: tuple[tuple[int, tuple[float, ...]], ...]
    pack_steps: int

    @property
    def divergence(self) -> str | None:
        """What went wrong where the run has no usable result; None where nothing did."""
        if not all(math.isfinite(loss) for _, loss in self.curve):
            return "the loss stopped being a number; lower recipe.learning_rate"
        (_, base_loss), *_, (_, last) = self.curve
        if last > MOST_LOSS * base_loss + SLACK_NATS:
            return (
                f"the loss ended at {last:.3g} nats per token, from {base_loss:.3g} without an"
                " adapter; lower recipe.learning_rate"
            )
        return None


def curve_steps(train_steps: int) -> frozenset[int]:
    """Log-spaced steps at which a run is evaluated: powers of two, and the end."""
    return frozenset(2**i for i in range(train_steps.bit_length())) | {train_steps}


def is_curve_step(step: int) -> bool:
    """Whether every run's curve has this step, unless it ends there or before: 0, or a power of
    two."""
    return step & (step - 1) == 0
