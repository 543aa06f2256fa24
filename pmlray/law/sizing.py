"""Rank, length and steps that a given loss reduction needs, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.forms.protocol import Law
from pmlray.law.placements import Placement
from pmlray.types import DesignPoint

# A token whose loss is below this holds more than half of the probability: greedy decoding is sure
# to produce it (arXiv 2605.30260, the threshold of its filter).
SURE_LOSS = math.log(2.0)
# Largest values that are reported; larger ones become inf.
LARGEST = {"lora_rank": 2.0**16, "seq_len": 2.0**24, "train_steps": 2.0**30}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimate of a quantity (a median in a sizing, a mean in a recall forecast) with its central
    interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sizing:
    """Requirement for a loss reduction of `delta_loss` nats per token at a point, along each axis
    with the other two fixed.

    `lora_rank`: the rank needed, 1 when any is enough and inf when none is. `seq_len`: the longest
    l, inf when any is possible and 0 when none is. `train_steps`: the optimiser steps needed, as
    the rank; None when the law has no budget term, since steps were then not varied. `placement`:
    whose ranks are meant, None for the reference's.
    """

    point: DesignPoint
    delta_loss: float
    lora_rank: Estimate
    seq_len: Estimate
    train_steps: Estimate | None
    placement: Placement | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; inf becomes null, which never stands for a missing number here."""

        def plain(estimate: Estimate) -> dict[str, float | None]:
            return {
                name: value if np.isfinite(value := getattr(estimate, name)) else None
                for name in ("value", "low", "high")
            }

        return {
            "point": self.point.to_json(),
            "delta_loss": self.delta_loss,
            "lora_rank": plain(self.lora_rank),
            "seq_len": plain(self.seq_len),
            "train_steps": None if self.train_steps is None else plain(self.train_steps),
            **({} if self.placement is None else {"placement": self.placement.name}),
        }


def size_for(
    samples: AveragedSamples, point: DesignPoint, delta_loss: float, level: float = 0.9
) -> Sizing:
    """Return the rank, length and steps that a loss reduction needs around `point`, in ranks of the
    samples' placement.

    delta_loss: nats per token. Every sample is inverted by itself, and none is allowed beyond the
    base loss, so that the intervals include both the noise and the disagreement between the forms.
    Raises DataError when delta_loss is not a finite number.
    """
    if not np.isfinite(delta_loss):
        raise DataError(f"a wanted delta_loss of {delta_loss} is no number of nats per token")
    r, length, t = float(point.lora_rank), float(point.seq_len), float(point.train_steps)
    base = float(samples.base.at(point.seq_len))
    laws: list[Law] = [] if delta_loss > base else samples.laws_at(point.seq_len)
    n_beyond = samples.sigma.size - len(laws)
    ranks = [law.invert_rank(length, t, delta_loss) for law in laws] + [np.inf] * n_beyond
    lengths = [law.invert_len(r, t, delta_loss) for law in laws] + [0.0] * n_beyond
    steps: Estimate | None = None
    if samples.parts[0].fit.law.fits_budget:
        drawn = [law.invert_steps(r, length, delta_loss) for law in laws] + [np.inf] * n_beyond
        steps = _estimate(drawn, level, 1.0, LARGEST["train_steps"])
    return Sizing(
        point,
        delta_loss,
        _estimate(ranks, level, 1.0, LARGEST["lora_rank"]),
        _estimate(lengths, level, 0.0, LARGEST["seq_len"]),
        steps,
        samples.placement,
    )


def _estimate(drawn: list[float], level: float, least: float, largest: float) -> Estimate:
    """Return `order_statistics` of values raised to `least`, and inf above `largest`."""
    values = np.asarray(drawn)
    return order_statistics(np.where(values > largest, np.inf, np.maximum(values, least)), level)


def order_statistics(drawn_n: FloatArray, level: float) -> Estimate:
    """Return order statistics without interpolation, which is undefined between inf and inf."""
    ordered = np.sort(drawn_n)
    edge = int(np.floor((1.0 - level) / 2.0 * (ordered.size - 1)))
    middle = float(ordered[(ordered.size - 1) // 2])
    return Estimate(middle, float(ordered[edge]), float(ordered[ordered.size - 1 - edge]))
