"""Training recipe of an adapter; the same for every run of a search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pmlray.config.spec_base import Count, Part, PositiveInt


class Recipe(Part):
    """Optimisation of one adapter.

    `batch_size`: records in a step. `schedule`: `warmup_constant_decay` warms up over
    `warmup_steps`, holds, and decays linearly to 0 over the last `decay_share` of the steps, so
    that runs of different `train_steps` are identical up to the shorter one's decay; `linear`
    decays from the end of its warm-up to 0 (the paper's, with warmup_steps 0). `dropout` acts on
    the adapter's output. A run for the law ends early once its loss, nats per token, is at most
    `stop_loss` (0: never), since the remaining steps can change its delta_loss by no more than
    that. A run on a plateau begins its decay early, once its loss is expected to change by at most
    `stop_gain`, nats per token, over the rest of its constant rate (0: never; `schedule: linear`
    has no constant rate). Adapters and optimiser state are fp32.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    schedule: Literal["warmup_constant_decay", "linear"] = "warmup_constant_decay"
    warmup_steps: Count = 8
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    batch_size: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    stop_loss: Annotated[float, Field(ge=0)] = 0.01
    stop_gain: Annotated[float, Field(ge=0)] = 0.02

    @property
    def shares_trunks(self) -> bool:
        """True if a run of fewer steps is identical to a longer one up to its own decay."""
        return self.schedule == "warmup_constant_decay"

    def decay_start(self, train_steps: int) -> int:
        """Return the first step (from 0) of the decay of a run of `train_steps`."""
        return train_steps - round(self.decay_share * train_steps)

    def rate_at(self, step: float, train_steps: int) -> float:
        """Return the learning rate of optimiser step `step` (from 0) in a run of `train_steps`;
        `step` may be fractional, where a run's steps count only in part."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "linear":
            left = (train_steps - step) / max(1, train_steps - self.warmup_steps)
        else:
            decay = train_steps - self.decay_start(train_steps)
            left = (train_steps - step) / max(1, decay)
        return self.learning_rate * min(warm, left, 1.0)
