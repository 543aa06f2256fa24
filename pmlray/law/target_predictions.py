"""Predictions of the law at its targets, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pmlray.law.data import LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.placements import PlacedPoint, Placement
from pmlray.law.validation.checklist import LEVEL
from pmlray.law.validation.judgement import is_far
from pmlray.types import DesignPoint

Target = DesignPoint | PlacedPoint


@dataclass(frozen=True, slots=True)
class TargetPrediction:
    """Prediction of the law at a point that a user asked about, with its 90% interval, and the 90%
    interval of the delta_loss that one new run would measure there; nats per token. `far`: beyond
    four times the measured ranks, lengths or steps, where the drift of the exponents is untested.
    `placement`: where the adapter of that rank sits, None for the reference's ranks."""

    point: DesignPoint
    delta_loss: float
    low: float
    high: float
    run_low: float
    run_high: float
    far: bool
    placement: Placement | None = None

    @property
    def relative_half_width(self) -> float:
        """Half of the law's interval over its |prediction|."""
        return (self.high - self.low) / 2.0 / max(abs(self.delta_loss), 1e-12)

    @property
    def name(self) -> str:
        """Rank and length in brackets, and the placement where there are several."""
        at = "" if self.placement is None else f" in {self.placement.name}"
        return f"({self.point.lora_rank}, {self.point.seq_len}){at}"

    @property
    def where(self) -> Target:
        """The target as it was asked about."""
        return self.point if self.placement is None else PlacedPoint(self.point, self.placement)


def predict_targets(
    data: LawData,
    samples: AveragedSamples,
    targets: Sequence[Target],
    rng: np.random.Generator,
) -> tuple[TargetPrediction, ...]:
    """Predict the loss reduction at each target from samples of the law.

    Args:
        data: the points that the law was fitted to, by which a target is far or not.
        samples: samples of the law over all forms.
        targets: any number of points, also none.
        rng: draws the noise of a single run.
    """
    found: list[TargetPrediction] = []
    for placement, group in groupby(targets, _placement):
        points = [t.point if isinstance(t, PlacedPoint) else t for t in group]
        at = samples if placement is None else samples.at(placement)
        r, length, t = np.array(
            [(p.lora_rank, p.seq_len, p.train_steps) for p in points], dtype=float
        ).T
        intervals = (
            np.median(at.predict(r, length, t), axis=0),
            *at.interval(r, length, t, LEVEL),
            *at.run_interval(r, length, t, rng, LEVEL),
        )
        rows = zip(points, *(edge.tolist() for edge in intervals), strict=True)
        for row in rows:
            where = row[0] if placement is None else PlacedPoint(row[0], placement)
            found.append(TargetPrediction(*row, far=is_far(data, where), placement=placement))
    return tuple(found)


def corners(data: LawData) -> list[Target]:
    """Return the largest rank, length and steps measured, of several placements those of each."""

    def corner(points: LawData) -> DesignPoint:
        axes = (points.lora_rank, points.seq_len, points.train_steps)
        r, length, t = (int(axis.max()) for axis in axes)
        return DesignPoint(r, length, t)

    if data.placement is None or not data.several_placements:
        return [corner(data)]
    return [
        PlacedPoint(corner(data.subset(at)), placement)
        for place, placement in enumerate(data.placements)
        if (at := data.placement == place).any()
    ]


def _placement(target: Target) -> Placement | None:
    return target.placement if isinstance(target, PlacedPoint) else None
