"""Predictions of the law at its targets, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.law.data import LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.validation.checklist import LEVEL
from pmlray.law.validation.judgement import is_far
from pmlray.types import DesignPoint


@dataclass(frozen=True, slots=True)
class TargetPrediction:
    """Prediction of the law at a point that a user asked about, with its 90% interval, and the 90%
    interval of the delta_loss that one new run would measure there; nats per token. `far`: beyond
    four times the measured ranks or lengths, where the drift of the exponents is untested."""

    point: DesignPoint
    delta_loss: float
    low: float
    high: float
    run_low: float
    run_high: float
    far: bool

    @property
    def relative_half_width(self) -> float:
        """Half of the law's interval over its |prediction|."""
        return (self.high - self.low) / 2.0 / max(abs(self.delta_loss), 1e-12)


def predict_targets(
    data: LawData,
    samples: AveragedSamples,
    targets: Sequence[DesignPoint],
    rng: np.random.Generator,
) -> tuple[TargetPrediction, ...]:
    """Predict the loss reduction at each target from samples of the law.

    Args:
        data: the points that the law was fitted to, by which a target is far or not.
        samples: samples of the law over all forms.
        targets: any number of points, also none.
        rng: draws the noise of a single run.
    """
    if not targets:
        return ()
    r, length, t = np.array(
        [(p.lora_rank, p.seq_len, p.train_steps) for p in targets], dtype=float
    ).T
    intervals = (
        np.median(samples.predict(r, length, t), axis=0),
        *samples.interval(r, length, t, LEVEL),
        *samples.run_interval(r, length, t, rng, LEVEL),
    )
    rows = zip(targets, *(edge.tolist() for edge in intervals), strict=True)
    return tuple(TargetPrediction(*row, far=is_far(data, row[0])) for row in rows)
