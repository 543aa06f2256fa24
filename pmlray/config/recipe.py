"""How one adapter is trained; the same for every run of a search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Optimisation of one adapter.

    `batch_size`: records in a step. `schedule`: `warmup_constant_decay` warms up over
    `warmup_share` of the steps, holds, and decays linearly to 0 over the last `decay_share`;
    `linear` decays from the first step to 0 after its warm-up (the paper's, with warmup_share 0).
    `dropout` acts on the adapter's output. Adapters and optimiser state are fp32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    schedule: Literal["warmup_constant_decay", "linear"] = "warmup_constant_decay"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    batch_size: Annotated[int, Field(ge=1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    def rate_at(self, step: int, train_steps: int) -> float:
        """Learning rate of optimiser step `step` (from 0) in a run of `train_steps`."""
        warmup = round(self.warmup_share * train_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "linear":
            return self.learning_rate * (train_steps - step) / max(1, train_steps - warmup)
        decay = round(self.decay_share * train_steps)
        return self.learning_rate * min(1.0, (train_steps - step) / max(1, decay))
