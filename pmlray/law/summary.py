"""What a search and its report say about the law: one fit with everything that qualifies it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pmlray.law.averaging import AveragedLaw, AveragedSamples, average_laws
from pmlray.law.checklist import LEVEL, checklist
from pmlray.law.correlation import entangled_pairs, param_correlations
from pmlray.law.data import FloatArray, LawData
from pmlray.law.diagnostics import (
    extrapolation_mape,
    heldout_errors,
    mape,
    mean_error,
    r2,
    sequence_errors,
)
from pmlray.law.fit import FitStatus, LawFit
from pmlray.law.protocol import Form
from pmlray.law.residuals import ResidualStructure, residual_structure
from pmlray.law.robust import FitOptions
from pmlray.law.sizing import Sizing, size_for
from pmlray.law.uncertainty import bootstrap_law, param_intervals
from pmlray.types import DesignPoint

# A token whose loss is below this holds more than half of the probability: greedy decoding is sure
# to produce it (arXiv 2605.30260, the threshold of its filter).
SURE_LOSS = math.log(2.0)


@dataclass(frozen=True, slots=True)
class TargetPrediction:
    """The law at a point that a user asked about, with its 90% interval, and the 90% interval of
    what one new run would measure there; nats per token."""

    point: DesignPoint
    delta_loss: float
    low: float
    high: float
    run_low: float
    run_high: float


@dataclass(frozen=True, slots=True)
class LawSummary:
    """A fit with its bootstrap samples (n, P), intervals, errors and predictions at the targets.

    `fit` is of the form with the largest of the `weights`; the targets are predicted by all forms.
    `r2` and the errors (`mape` and those held out) are fractions, None where they cannot be had:
    `heldout_mape` of cells left out one at a time, `sequence_mape` of (sequence, seed) pairs left
    out, `extrapolation_mape` at the largest rank and length. `intervals` are central 90% intervals
    by parameter name. `average_samples` are None without targets.
    """

    fit: LawFit
    weights: Mapping[Form, float]
    samples: FloatArray
    intervals: Mapping[str, tuple[float, float]]
    r2: float | None
    mape: float | None
    heldout_mape: float | None
    sequence_mape: float | None
    extrapolation_mape: float | None
    targets: tuple[TargetPrediction, ...]
    residuals: ResidualStructure
    checklist: Mapping[str, str]
    average: AveragedLaw
    average_samples: AveragedSamples | None

    @property
    def relative_interval(self) -> float | None:
        """Largest half-width of a target's interval over its |prediction|; None without targets."""
        widths = [(t.high - t.low) / 2.0 / max(abs(t.delta_loss), 1e-12) for t in self.targets]
        return max(widths, default=None)

    @property
    def known_interval(self) -> float | None:
        """`relative_interval`, and None while no residual tells the noise: it would then only say
        what was assumed."""
        return self.relative_interval if self.fit.noise_known else None

    @property
    def headline(self) -> str:
        """What to know first, in a sentence: how far off the law is where it was not measured."""
        if self.fit.status is FitStatus.UNDERDETERMINED:
            # Points that say nothing, such as saturated ones, are predicted well by any law.
            return (
                "The points leave the law open and a weak prior fills in: no error can speak for"
                " it yet."
            )
        if self.extrapolation_mape is not None:
            return (
                "At the largest rank and length, when fitted to the smaller ones, the law was off"
                f" by {100 * self.extrapolation_mape:.3g}% on average (held-out extrapolation"
                " error)."
            )
        if self.heldout_mape is not None:
            return (
                "How far off the law is beyond its points is not known: too few remain when the"
                " largest rank and length are held out."
            )
        return "How far off the law is at other points is not known: too few to hold any out."

    def sizes(self, delta_loss: float | None = None) -> tuple[Sizing, ...]:
        """Rank, length and steps that a loss reduction takes around each target.

        delta_loss: nats per token; by default what brings the mean loss down to ln 2. Empty without
        targets, or where the base loss that the default needs is not known.
        """
        if delta_loss is None:
            delta_loss = self.average.base_loss - SURE_LOSS
            if not math.isfinite(delta_loss):
                return ()
        if self.average_samples is None:
            return ()
        return tuple(
            size_for(self.average, self.average_samples, t.point, delta_loss, LEVEL)
            for t in self.targets
        )

    def to_json(self, delta_loss: float | None = None) -> dict[str, Any]:
        """JSON types only. `n_obs` counts the points fitted, `n_censored` those set aside.

        `delta_loss`, nats per token: what `sizes` is asked for.
        """
        law, fit = self.fit.law, self.fit
        condition = fit.condition_number
        stored: dict[str, Any] = {
            "headline": self.headline,
            **law.to_json(),
            "r2": self.r2,
            "mape": self.mape,
            "heldout_mape": self.heldout_mape,
            "sequence_mape": self.sequence_mape,
            "extrapolation_mape": self.extrapolation_mape,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_level": LEVEL,
            "weights": dict(self.weights),
            "condition_number": condition if math.isfinite(condition) else None,
            "unidentified": list(fit.unidentified),
            "n_obs": fit.n_obs,
            "n_censored": fit.n_censored,
            "sigma": fit.sigma,
            "noise": asdict(fit.noise),
            "status": str(fit.status),
            "message": fit.message,
            "relative_interval": self.relative_interval,
            "targets": [_target_json(t) for t in self.targets],
            "sizes": [size.to_json() for size in self.sizes(delta_loss)],
            "residuals": _residuals_json(self.residuals),
            "correlations": {
                "parameters": list(law.param_names),
                "matrix": [
                    [None if math.isnan(x) else x for x in row]
                    for row in param_correlations(fit).tolist()
                ],
                "entangled": [asdict(pair) for pair in entangled_pairs(fit)],
            },
            "checklist": dict(self.checklist),
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
    options: FitOptions | None = None,
) -> LawSummary:
    """Fit, choose the form, and qualify the result.

    `auto` fits every one of `forms` that the points carry and takes the one with the smallest error
    on points it has not seen, never by R2 (`form_weights`); the targets are predicted by all of
    them, each with its weight. `options`: how points count in every fit. FitError when no form
    fits.
    """
    average = average_laws(data, forms if form == "auto" else (form,), options)
    fit = average.best
    samples = bootstrap_law(data, fit, n_bootstrap, rng)
    drawn = average.sample(data, n_bootstrap, rng) if targets else None
    residuals = residual_structure(data, fit)
    return LawSummary(
        fit=fit,
        weights=average.by_form,
        samples=samples,
        intervals=param_intervals(fit.law, samples, LEVEL),
        r2=r2(data, fit),
        mape=mape(data, fit),
        heldout_mape=mean_error(heldout_errors(data, fit)),
        sequence_mape=mean_error(sequence_errors(data, fit)),
        extrapolation_mape=extrapolation_mape(data, fit.law.form, options),
        targets=() if drawn is None else _predict(average, drawn, targets, rng),
        residuals=residuals,
        checklist=checklist(data, average, len(samples), residuals),
        average=average,
        average_samples=drawn,
    )


def _predict(
    average: AveragedLaw,
    samples: AveragedSamples,
    targets: Sequence[DesignPoint],
    rng: np.random.Generator,
) -> tuple[TargetPrediction, ...]:
    r, length, t = np.array(
        [(p.lora_rank, p.seq_len, p.train_steps) for p in targets], dtype=float
    ).T
    predicted = average.predict(r, length, t)
    intervals = (
        *samples.interval(r, length, t, LEVEL),
        *samples.run_interval(r, length, t, rng, LEVEL),
    )
    rows = zip(targets, predicted.tolist(), *(edge.tolist() for edge in intervals), strict=True)
    return tuple(TargetPrediction(*row) for row in rows)


def _target_json(target: TargetPrediction) -> dict[str, Any]:
    losses = {"delta_loss": target.delta_loss, "low": target.low, "high": target.high}
    names = ("stored_bits", "stored_bits_low", "stored_bits_high")
    bits = [target.point.seq_len * loss / math.log(2.0) for loss in losses.values()]
    run = {"run_low": target.run_low, "run_high": target.run_high}
    return asdict(target.point) | losses | run | dict(zip(names, bits, strict=True))


def _residuals_json(found: ResidualStructure) -> dict[str, Any]:
    names = ("lora_rank", "seq_len", "train_steps", "predicted", "residual")
    return {
        "structure_left": list(found.left),
        "trends": [asdict(trend) for trend in found.trends],
        "spread": None if found.spread is None else asdict(found.spread),
        "points": [
            dict(zip(names, row, strict=True))
            for row in zip(
                *(found.points.lora_rank.tolist(), found.points.seq_len.tolist()),
                *(found.points.train_steps.tolist(), found.predicted.tolist()),
                found.residual.tolist(),
                strict=True,
            )
        ],
    }
