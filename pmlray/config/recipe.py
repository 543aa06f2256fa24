"""Training recipe of an adapter; the same for every run of a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from pmlray.config.spec_base import Count, Part, PositiveInt
from pmlray.types import Schedule

# Default of searches begun before the rate followed the adapter's place.
FORMER_RATE = 1e-2
# Peak rate beside one module and the power of their number by which it falls; largest rate times
# rank that was seen to be stable beside one module, and its power (scripts/bench/results/rates.md).
ONE_SITE_RATE, SITES_POWER = 4e-2, 0.25
STABLE_STEP, STABLE_POWER = 2.6, 0.8
# Largest rate times rank times modules at which an adapter was seen to learn many records, whose
# steps undo each other's at a higher one.
MANY_STEP = 1.75


class Recipe(Part):
    """Optimisation of one adapter.

    `learning_rate`: peak rate; auto: by where a run's adapter sits, see `auto_rate`. `batch_size`:
    records in a step. `schedule`: `warmup_constant_decay` warms up over `warmup_steps`, holds, and
    decays linearly to 0 over the last `decay_share` of the steps, so that runs of different
    `train_steps` are identical up to the shorter one's decay; `linear` decays from the end of its
    warm-up to 0 (the paper's, with warmup_steps 0). `dropout` acts on the adapter's output. A run
    for the law ends early once its loss, nats per token, is at most `stop_loss` (0: never), since
    the remaining steps can change its delta_loss by no more than that. A run on a plateau begins
    its decay early, once its loss is expected to change by at most `stop_gain`, nats per token,
    over the rest of its constant rate (0: never; `schedule: linear` has no constant rate). Adapters
    and optimiser state are fp32.
    """

    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    schedule: Schedule = "warmup_constant_decay"
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

    def under(self, schedule: Schedule | None) -> Recipe:
        """Return the recipe with a schedule in place of its own, where one is given."""
        return self if schedule is None else self.model_copy(update={"schedule": schedule})

    def decay_start(self, train_steps: int) -> int:
        """Return the first step (from 0) of the decay of a run of `train_steps`."""
        return train_steps - round(self.decay_share * train_steps)

    def peak_rate(
        self, lora_rank: int, n_sites: int, scale: float, *, many_records: bool = False
    ) -> float:
        """Return the peak rate of an adapter of a rank at so many modules; see `auto_rate`."""
        if self.learning_rate == "auto":
            return auto_rate(lora_rank, n_sites, scale, many_records=many_records)
        return self.learning_rate

    def rate_at(self, step: float, train_steps: int, peak_rate: float | None = None) -> float:
        """Return the learning rate of optimiser step `step` (from 0) in a run of `train_steps`;
        `step` may be fractional, where a run's steps count only in part.

        peak_rate: of the run, where it is not the recipe's; ValueError where neither says one.
        """
        peak = self.learning_rate if peak_rate is None else peak_rate
        if peak == "auto":
            raise ValueError("the recipe's learning_rate is auto: give the run's own")
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "linear":
            left = (train_steps - step) / max(1, train_steps - self.warmup_steps)
        else:
            decay = train_steps - self.decay_start(train_steps)
            left = (train_steps - step) / max(1, decay)
        return peak * min(warm, left, 1.0)


def auto_rate(
    lora_rank: int, n_sites: int, scale: float = 1.0, *, many_records: bool = False
) -> float:
    """Return the peak rate of adapters of a rank at so many modules.

    It falls slowly with the number of modules, and is held where training stays stable: a step of
    AdamW moves the output of each module by about the rate times the rank and LoRA's scale, and the
    modules' moves add up.

    scale: of the adapter's output, alpha over the rank (of rsLoRA, over its root). many_records:
    whether steps see different records, so that a step must not undo what others learnt.

    Example:
        >>> auto_rate(1, n_sites=1), auto_rate(8, n_sites=210), auto_rate(64, n_sites=210)
        (0.04, 0.0045, 0.00056)
        >>> auto_rate(2, n_sites=1, many_records=True), auto_rate(2, n_sites=210, many_records=True)
        (0.04, 0.0042)
    """
    fast = ONE_SITE_RATE / n_sites**SITES_POWER
    stable = STABLE_STEP / (lora_rank * n_sites**STABLE_POWER)
    if many_records:
        stable = min(stable, MANY_STEP / (lora_rank * n_sites))
    return float(f"{min(fast, stable) / scale:.2g}")


def with_former_rate(chosen: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a spec's fields that differ from the defaults as they were told when the rate's
    default was FORMER_RATE: any other is said, `auto` too."""
    told = {n: value for n, value in chosen.get("recipe", {}).items() if n != "learning_rate"}
    if recipe.learning_rate != FORMER_RATE:
        told["learning_rate"] = recipe.learning_rate
    others = {name: value for name, value in chosen.items() if name != "recipe"}
    return {**others, "recipe": told} if told else others
