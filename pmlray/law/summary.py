"""What a search and its report say about the law: one fit with everything that qualifies it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pmlray.law.averaging import AveragedLaw, average_laws
from pmlray.law.data import FloatArray, LawData
from pmlray.law.diagnostics import (
    extrapolation_mape,
    heldout_errors,
    mape,
    mean_error,
    r2,
)
from pmlray.law.fit import LawFit
from pmlray.law.protocol import Form
from pmlray.law.uncertainty import bootstrap_law, param_intervals
from pmlray.types import DesignPoint

LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class TargetPrediction:
    """The law at a point that a user asked about, with its 90% interval; nats per token."""

    point: DesignPoint
    delta_loss: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LawSummary:
    """A fit with its bootstrap samples (n, P), intervals, errors and predictions at the targets.

    `fit` is of the form with the largest of the `weights`; the targets are predicted by all forms.
    `r2`, `mape`, `heldout_mape` and `extrapolation_mape` are fractions, None where they cannot be
    had. `intervals` are central 90% intervals by parameter name.
    """

    fit: LawFit
    weights: Mapping[Form, float]
    samples: FloatArray
    intervals: Mapping[str, tuple[float, float]]
    r2: float | None
    mape: float | None
    heldout_mape: float | None
    extrapolation_mape: float | None
    targets: tuple[TargetPrediction, ...]

    @property
    def relative_interval(self) -> float | None:
        """Largest half-width of a target's interval over its |prediction|; None without targets."""
        widths = [(t.high - t.low) / 2.0 / max(abs(t.delta_loss), 1e-12) for t in self.targets]
        return max(widths, default=None)

    def to_json(self) -> dict[str, Any]:
        """JSON types only. `n_obs` counts the points fitted, `n_censored` those set aside."""
        law, fit = self.fit.law, self.fit
        condition = fit.condition_number
        stored: dict[str, Any] = {
            **law.to_json(),
            "r2": self.r2,
            "mape": self.mape,
            "heldout_mape": self.heldout_mape,
            "extrapolation_mape": self.extrapolation_mape,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_level": LEVEL,
            "weights": dict(self.weights),
            "condition_number": condition if math.isfinite(condition) else None,
            "unidentified": list(fit.unidentified),
            "n_obs": fit.n_obs,
            "n_censored": fit.n_censored,
            "sigma": fit.sigma,
            "status": str(fit.status),
            "message": fit.message,
            "relative_interval": self.relative_interval,
            "targets": [
                {
                    "lora_rank": t.point.lora_rank,
                    "seq_len": t.point.seq_len,
                    "train_steps": t.point.train_steps,
                    "delta_loss": t.delta_loss,
                    "low": t.low,
                    "high": t.high,
                }
                for t in self.targets
            ],
        }
        return stored


def summarise(
    data: LawData,
    form: Form | Literal["auto"] = "auto",
    *,
    forms: Sequence[Form] = ("power", "ceiling"),
    n_bootstrap: int = 200,
    rng: np.random.Generator,
    targets: Sequence[DesignPoint] = (),
) -> LawSummary:
    """Fit, choose the form, and qualify the result.

    `auto` fits every one of `forms` that the points carry and takes the one with the smallest error
    on points it has not seen, never by R2 (`form_weights`); the targets are predicted by all of
    them, each with its weight. FitError when no form fits.
    """
    average = average_laws(data, forms if form == "auto" else (form,))
    fit = average.best
    samples = bootstrap_law(data, fit, n_bootstrap, rng)
    return LawSummary(
        fit=fit,
        weights=average.by_form,
        samples=samples,
        intervals=param_intervals(fit.law, samples, LEVEL),
        r2=r2(data, fit),
        mape=mape(data, fit),
        heldout_mape=mean_error(heldout_errors(data, fit)),
        extrapolation_mape=extrapolation_mape(data, fit.law.form),
        targets=_predict(data, average, targets, n_bootstrap, rng),
    )


def _predict(
    data: LawData,
    average: AveragedLaw,
    targets: Sequence[DesignPoint],
    n_bootstrap: int,
    rng: np.random.Generator,
) -> tuple[TargetPrediction, ...]:
    if not targets:
        return ()
    r, length, t = np.array(
        [(p.lora_rank, p.seq_len, p.train_steps) for p in targets], dtype=float
    ).T
    predicted = average.predict(r, length, t)
    low, high = average.sample(data, n_bootstrap, rng).interval(r, length, t, LEVEL)
    rows = zip(targets, predicted.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(TargetPrediction(*row) for row in rows)
