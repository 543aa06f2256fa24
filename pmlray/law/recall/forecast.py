"""Forecast of a new run's recall at (r, l, t): the law of the loss and the law of recall together.

Shapes: N measured runs, S draws.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedLaw, AveragedSamples
from pmlray.law.recall.recall_law import RecallLaw
from pmlray.law.sizing import Estimate
from pmlray.types import DesignPoint

DRAWS = 4000
# A run's noise is that of the runs with the nearest predicted losses: this many, or this share.
NEAREST = 10
NEAREST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class RecallForecast:
    """Forecast of one new run at a point, mean and central interval of each quantity.

    `final_loss` in nats per token; token, prefix and exact recall are shares. Where a run is one
    record, exact recall is 0 or 1 and `exact.value` the probability of 1. `placement`: the name of
    the one whose rank is meant, where the law has several.
    """

    point: DesignPoint
    final_loss: Estimate
    token: Estimate
    prefix: Estimate
    exact: Estimate
    placement: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        stored = asdict(self) | {"point": self.point.to_json()}
        if self.placement is None:
            del stored["placement"]
        return stored


def forecast_recall(
    law: RecallLaw,
    average: AveragedLaw,
    samples: AveragedSamples,
    data: LawData,
    point: DesignPoint,
    rng: np.random.Generator,
    level: float = 0.9,
) -> RecallForecast:
    """Forecast the recall of one new run at a point from both laws, with all their uncertainty.

    average, samples: of the loss, fitted to `data`; the point's rank is of the samples' placement,
    as `AveragedSamples.at` gives it. Draws hold the doubt about both laws, the noise
    of a run's loss (`run_losses`), and that of recall at a given loss.
    """
    loss_S = run_losses(average, samples, data, point, rng)
    recall = law.sample(loss_S, *law.records(point.seq_len), rng)
    return RecallForecast(
        point,
        _estimate(loss_S, level),
        *(_estimate(drawn, level) for drawn in (recall.token, recall.prefix, recall.exact)),
        placement=None if samples.placement is None else samples.placement.name,
    )


def run_losses(
    average: AveragedLaw,
    samples: AveragedSamples,
    data: LawData,
    point: DesignPoint,
    rng: np.random.Generator,
) -> FloatArray:
    """Draw the final loss of one new run, nats per token, (S,).

    Near saturation runs differ by hundredths of a nat, half-way there by one, so no single noise
    fits both: each draw of the law gets the residual of one of the runs whose predicted final
    losses are nearest to it.
    """
    base = average.base_loss
    predicted_N = base - average.predict_points(data)
    final_N = np.where(np.isnan(data.final_loss), data.base_loss - data.delta_loss, data.final_loss)
    order = np.argsort(predicted_N)
    predicted_N, residual_N = predicted_N[order], (final_N - predicted_N)[order]
    at = (point.lora_rank, point.seq_len, point.train_steps)
    drawn_S = rng.choice(base - samples.predict(*at), DRAWS)
    n_near = min(predicted_N.size, max(NEAREST, round(NEAREST_SHARE * predicted_N.size)))
    first_S = np.searchsorted(predicted_N, drawn_S) - n_near // 2
    first_S = np.clip(first_S, 0, predicted_N.size - n_near)
    near_S = first_S + rng.integers(0, n_near, DRAWS)
    return np.clip(drawn_S + residual_N[near_S], final_N.min(), base)


def _estimate(drawn: FloatArray, level: float) -> Estimate:
    # No interpolation between draws: the recall of one record is 0 or 1.
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], method="inverted_cdf")
    return Estimate(float(drawn.mean()), float(low), float(high))
