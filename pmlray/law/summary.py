"""What a search and its report say about the law: one fit with everything that qualifies it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pmlray.errors import FitError
from pmlray.law.data import FloatArray, LawData
from pmlray.law.diagnostics import (
    extrapolation_errors,
    extrapolation_mape,
    heldout_errors,
    mape,
    mean_error,
    r2,
)
from pmlray.law.fit import LawFit, fit_law
from pmlray.law.protocol import Form
from pmlray.law.uncertainty import bootstrap_law, param_intervals, prediction_interval
from pmlray.types import DesignPoint

log = logging.getLogger(__name__)

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

    `r2`, `mape`, `heldout_mape` and `extrapolation_mape` are fractions, None where they cannot be
    had. `intervals` are central 90% intervals by parameter name.
    """

    fit: LawFit
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
        stored: dict[str, Any] = {
            **law.to_json(),
            "r2": self.r2,
            "mape": self.mape,
            "heldout_mape": self.heldout_mape,
            "extrapolation_mape": self.extrapolation_mape,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_level": LEVEL,
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
    n_bootstrap: int = 200,
    rng: np.random.Generator,
    targets: Sequence[DesignPoint] = (),
) -> LawSummary:
    """Fit, choose the form, and qualify the result.

    `auto` fits both forms where every base loss is known and takes the one with the smaller error
    on points it has not seen: at the largest length and rank where both can be tested there, else
    on design cells left out; over the points that both forms predict, never by R2. Where nothing
    can be tested it takes the ceiling, which holds at saturation too. FitError when no form fits.
    """
    fit = _choose(data) if form == "auto" else fit_law(data, form)
    samples = bootstrap_law(data, fit, n_bootstrap, rng)
    return LawSummary(
        fit=fit,
        samples=samples,
        intervals=param_intervals(fit.law, samples, LEVEL),
        r2=r2(data, fit),
        mape=mape(data, fit),
        heldout_mape=mean_error(heldout_errors(data, fit)),
        extrapolation_mape=extrapolation_mape(data, fit.law.form),
        targets=_predict(fit, samples, targets),
    )


def _choose(data: LawData) -> LawFit:
    if np.any(np.isnan(data.base_loss)):
        return fit_law(data, "power")
    ceiling = fit_law(data, "ceiling")
    try:
        power = fit_law(data, "power")
    except FitError as error:
        log.info("ceiling form: the power form has no usable fit (%s)", error)
        return ceiling
    of_power = np.concatenate(extrapolation_errors(data, "power"))
    of_ceiling = np.concatenate(extrapolation_errors(data, "ceiling"))
    if not np.any(np.isfinite(of_power) & np.isfinite(of_ceiling)):
        of_power, of_ceiling = heldout_errors(data, power), heldout_errors(data, ceiling)
    both = np.isfinite(of_power) & np.isfinite(of_ceiling)
    if not both.any():
        return ceiling
    power_error, ceiling_error = float(of_power[both].mean()), float(of_ceiling[both].mean())
    log.info("held-out error: power %.4f, ceiling %.4f", power_error, ceiling_error)
    return power if power_error < ceiling_error else ceiling


def _predict(
    fit: LawFit, samples: FloatArray, targets: Sequence[DesignPoint]
) -> tuple[TargetPrediction, ...]:
    if not targets:
        return ()
    r, length, t = np.array(
        [(p.lora_rank, p.seq_len, p.train_steps) for p in targets], dtype=float
    ).T
    predicted = fit.law.predict(r, length, t)
    low, high = prediction_interval(fit, samples, r, length, t, LEVEL)
    rows = zip(targets, predicted.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(TargetPrediction(*row) for row in rows)
