"""Recall of a search: its law, its transition, and forecasts of one new run at the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmlray.errors import FitError
from pmlray.law import (
    LawSummary,
    Placement,
    RecallForecast,
    RecallLaw,
    Transition,
    fit_recall,
    forecast_recall,
    law_data,
    measure_transition,
    token_runs,
)
from pmlray.types import DesignPoint, Observation


@dataclass(frozen=True)
class RecallResult:
    """Recall of a search; `why_not` says what is missing, empty when nothing is.

    `law` is None while it cannot be fitted to the runs, `transition` while no run's tokens are
    known. `forecasts` are at the targets of the law of the loss.
    """

    law: RecallLaw | None
    transition: Transition | None
    forecasts: tuple[RecallForecast, ...]
    why_not: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "law": self.law and self.law.to_json(),
            "transition": self.transition and self.transition.to_json(),
            "targets": [forecast.to_json() for forecast in self.forecasts],
            "why_not": self.why_not,
        }


def recall_result(
    observations: Sequence[Observation], loss: LawSummary | None, fitted: Sequence[Observation]
) -> RecallResult:
    """Return recall of the law phase's runs; `loss` is the law fitted to those in `fitted`.

    The draws' seed is fixed, so that the same observations give the same intervals.
    """
    rng = np.random.default_rng(0)
    try:
        transition = measure_transition(token_runs(observations), rng)
    except FitError as error:
        return RecallResult(None, None, (), str(error))
    try:
        law = fit_recall(observations)
    except FitError as error:
        return RecallResult(None, transition, (), str(error))
    if loss is None:
        return RecallResult(law, transition, (), "")
    forecasts = (
        forecast_at(law, loss, fitted, target.point, target.placement, rng)
        for target in loss.targets
    )
    return RecallResult(law, transition, tuple(forecasts), "")


def forecast_at(
    law: RecallLaw,
    loss: LawSummary,
    fitted: Sequence[Observation],
    point: DesignPoint,
    placement: Placement | None,
    rng: np.random.Generator,
) -> RecallForecast:
    """Forecast one new run at a point whose rank is of a placement; None: of the law's reference.

    `loss` is the law fitted to the runs in `fitted`.
    """
    samples = loss.average_samples
    if placement is not None:
        samples = samples.at(placement)
    return forecast_recall(law, loss.average, samples, law_data(fitted), point, rng)
