"""What rank, length and steps a wanted loss reduction takes, as surely as the law is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pmlray.errors import DataError
from pmlray.law.averaging import AveragedLaw, AveragedSamples
from pmlray.law.data import FloatArray
from pmlray.types import DesignPoint


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number read off the average of the forms, with its central interval; 0 and inf allowed."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sizing:
    """What it takes to lower the loss by `delta_loss` nats per token at a point, moving one axis
    and keeping the other two.

    `lora_rank`: the rank needed, 0 when any does and inf when none does. `seq_len`: the longest l,
    inf when any does and 0 when none does. `train_steps`: the optimiser steps needed, as the rank;
    None when the law has no budget term, since steps were then not varied.
    """

    point: DesignPoint
    delta_loss: float
    lora_rank: Estimate
    seq_len: Estimate
    train_steps: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """JSON types; inf becomes null, which is never a missing number here."""

        def plain(estimate: Estimate) -> dict[str, float | None]:
            return {
                name: value if np.isfinite(value := getattr(estimate, name)) else None
                for name in ("value", "low", "high")
            }

        return {
            "point": {
                "lora_rank": self.point.lora_rank,
                "seq_len": self.point.seq_len,
                "train_steps": self.point.train_steps,
            },
            "delta_loss": self.delta_loss,
            "lora_rank": plain(self.lora_rank),
            "seq_len": plain(self.seq_len),
            "train_steps": None if self.train_steps is None else plain(self.train_steps),
        }


def size_for(
    average: AveragedLaw,
    samples: AveragedSamples,
    point: DesignPoint,
    delta_loss: float,
    level: float = 0.9,
) -> Sizing:
    """Rank, length and steps that a wanted loss reduction takes around `point`.

    delta_loss: nats per token. The values invert the average of the forms; the intervals are those
    of `samples` (of `average`), each inverted alone and none believed beyond the base loss, so that
    they hold both the noise and the disagreement between the forms. Raises DataError when
    delta_loss is not a finite number.
    """
    if not np.isfinite(delta_loss):
        raise DataError(f"a wanted delta_loss of {delta_loss} is no number of nats per token")
    r, length, t = float(point.lora_rank), float(point.seq_len), float(point.train_steps)
    beyond = delta_loss > samples.base_loss
    ranks: list[float] = []
    lengths: list[float] = []
    steps: list[float] = []
    fits_budget = average.best.law.fits_budget
    for fit, params in samples.parts:
        for sample in params:
            law = fit.law.with_params(sample)
            ranks.append(np.inf if beyond else law.invert_rank(length, t, delta_loss))
            lengths.append(0.0 if beyond else law.invert_len(r, t, delta_loss))
            if fits_budget:
                steps.append(np.inf if beyond else law.invert_steps(r, length, delta_loss))
    return Sizing(
        point,
        delta_loss,
        _estimate(average.invert_rank(length, t, delta_loss), ranks, level),
        _estimate(average.invert_len(r, t, delta_loss), lengths, level),
        _estimate(average.invert_steps(r, length, delta_loss), steps, level)
        if fits_budget
        else None,
    )


def _estimate(value: float, drawn: list[float], level: float) -> Estimate:
    """Whole order statistics: between inf and inf nothing can be interpolated."""
    ordered: FloatArray = np.sort(drawn)
    edge = int(np.floor((1.0 - level) / 2.0 * (ordered.size - 1)))
    return Estimate(value, float(ordered[edge]), float(ordered[ordered.size - 1 - edge]))
