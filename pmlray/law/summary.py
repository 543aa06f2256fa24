"""Summary of the law for a search and its report: one fit with its diagnostics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedLaw, AveragedSamples, average_laws, default_forms
from pmlray.law.fitting.fit import FitOptions, FitStatus, LawFit
from pmlray.law.forms.protocol import Form
from pmlray.law.placement_choice import PlacementChoice, choices_at
from pmlray.law.sizing import SURE_LOSS, Sizing, size_for
from pmlray.law.summary_json import (
    correlations_json,
    residuals_json,
    target_json,
    unseen_json,
    worths_json,
)
from pmlray.law.target_predictions import Target, TargetPrediction, corners, predict_targets
from pmlray.law.validation.checklist import LEVEL, checklist
from pmlray.law.validation.diagnostics import mape, r2
from pmlray.law.validation.intervals import param_intervals
from pmlray.law.validation.judgement import Judgement, judge
from pmlray.law.validation.residuals import ResidualStructure, residual_structure
from pmlray.law.validation.unseen import UnseenError, UnseenErrors

# Posterior samples, from which intervals come, unless told otherwise.
N_SAMPLES = 200
# Without a base loss, predictions above this share of the largest delta_loss count as at its cap.
AT_MOST = 0.98


@dataclass(frozen=True, slots=True)
class LawSummary:
    """Fitted law with its diagnostics.

    Args:
        fit: form with the largest weight, with the status that `judgement` gives it.
        judgement: status of the law at its targets, and the reason.
        weights: weight of each form by its evidence; they add up to 1.
        samples: (n, P), posterior samples of the params of `fit.law`.
        intervals: central 90% intervals of its parameters, by name.
        r2: share of variance explained at the points fitted; None where undefined.
        mape: mean error at the points fitted, a fraction; None where undefined.
        unseen: errors at points held out.
        targets: predictions at the targets by all forms, nats per token.
        residuals: structure left in the residuals.
        checklist: what a reader needs to repeat and judge the fit, by item.
        average: all forms that were fitted.
        average_samples: posterior samples of all forms.

    Example:
        >>> law = fit_law(read_law_data("points.csv"), targets=[DesignPoint(8, 256, 150)])
        >>> print(law.headline, *law.limits)
    """

    fit: LawFit
    judgement: Judgement
    weights: Mapping[Form, float]
    samples: FloatArray
    intervals: Mapping[str, tuple[float, float]]
    r2: float | None
    mape: float | None
    unseen: UnseenErrors
    targets: tuple[TargetPrediction, ...]
    residuals: ResidualStructure
    checklist: Mapping[str, str]
    average: AveragedLaw
    average_samples: AveragedSamples

    @property
    def heldout(self) -> UnseenError | None:
        """The error at cells left out one at a time, of those that were not saturated."""
        return self.unseen.heldout

    @property
    def new_sequence(self) -> UnseenError | None:
        """The error at (sequence, seed) pairs left out, of runs that were not saturated."""
        return self.unseen.new_sequence

    @property
    def extrapolation(self) -> UnseenError | None:
        """The error at the largest rank and length, of runs that were not saturated."""
        return self.unseen.extrapolation

    @property
    def heldout_mape(self) -> float | None:
        """The mean error of cells left out, a fraction."""
        return _mean(self.heldout)

    @property
    def sequence_mape(self) -> float | None:
        """The mean error of (sequence, seed) pairs left out, a fraction."""
        return _mean(self.new_sequence)

    @property
    def extrapolation_mape(self) -> float | None:
        """The mean error at the largest rank and length, a fraction."""
        return _mean(self.extrapolation)

    @property
    def relative_interval(self) -> float | None:
        """Largest half-width of a target's interval over its |prediction|; None without targets."""
        return max((t.relative_half_width for t in self.targets), default=None)

    @property
    def known_interval(self) -> float | None:
        """`relative_interval`; None while the points are too few to trust it."""
        return self.relative_interval if self.judgement.enough else None

    @property
    def headline(self) -> str:
        """Most important sentence: the law's error where nothing was measured."""
        if self.fit.status is FitStatus.UNDERDETERMINED:
            return "The points leave the law open where it is asked about: see the status."
        if (found := self.extrapolation) is not None:
            return (
                "At the largest rank and length, when fitted to the smaller ones, the law was off"
                f" by {100 * found.error:.3g}% [{100 * found.low:.3g}, {100 * found.high:.3g}] on"
                f" average (held-out extrapolation error, {found.n_cells} cells)."
            )
        if self.heldout is not None:
            return (
                "How far off the law is beyond its points is not known: too few that are not"
                " saturated remain when the largest rank and length are held out."
            )
        return "How far off the law is at other points is not known: too few to hold any out."

    @property
    def limits(self) -> tuple[str, ...]:
        """Bounds of the predictions, a sentence each."""
        found: list[str] = []
        if not self.average.base_loss_known:
            found.append(
                "No base loss is known, so nothing is predicted above the largest delta_loss"
                f" measured, {self.average.base_loss:.4g} nats: give it with --base-loss."
            )
        if far := [t.name for t in self.targets if t.far]:
            where = ", ".join(far)
            found.append(
                f"Beyond four times the measured ranks, lengths or steps: (r, l) {where}. Nothing"
                " tells how the law goes on there but the points' own trend."
            )
        return tuple(found)

    def sizes(self, delta_loss: float | None = None) -> tuple[Sizing, ...]:
        """Return the rank, length and steps that a loss reduction needs around each target.

        delta_loss: nats per token; by default what brings the mean loss down to ln 2. Empty without
        targets, or where the base loss that the default needs is not known.
        """
        if delta_loss is None and not self.average.base_loss_known:
            return ()
        found: list[Sizing] = []
        for target in self.targets:
            point, samples = target.point, self.average_samples
            if target.placement is not None:
                samples = samples.at(target.placement)
            base = float(self.average.base.at(point.seq_len))
            wanted = base - SURE_LOSS if delta_loss is None else delta_loss
            found.append(size_for(samples, point, wanted, LEVEL))
        return tuple(found)

    def choices(self, delta_loss: float | None = None) -> tuple[PlacementChoice, ...]:
        """Return which placement needs the fewest parameters for a loss reduction at the lengths
        and steps of the targets, without any at the largest measured.

        delta_loss: as for `sizes`. Empty where the points have one placement, or without a base
        loss that the default needs.
        """
        return choices_at(self.unseen.data, self.average_samples, self.targets, delta_loss)

    def to_json(self, delta_loss: float | None = None) -> dict[str, Any]:
        """Return JSON types only. `n_obs` counts the points fitted, `n_censored` those set aside.

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
            "unseen": unseen_json(self.unseen),
            "limits": list(self.limits),
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
            "targets": [target_json(t) for t in self.targets],
            "sizes": [size.to_json() for size in self.sizes(delta_loss)],
            "residuals": residuals_json(self.residuals),
            "correlations": correlations_json(fit),
            "checklist": dict(self.checklist),
            **worths_json(self.unseen.data, self.average_samples),
        }
        if choices := self.choices(delta_loss):
            stored["choices"] = [choice.to_json() for choice in choices]
        return stored


def fit_law(
    data: LawData,
    form: Form | Literal["auto"] = "auto",
    *,
    forms: Sequence[Form] | None = None,
    n_bootstrap: int = N_SAMPLES,
    rng: np.random.Generator | None = None,
    targets: Sequence[Target] = (),
    options: FitOptions | None = None,
) -> LawSummary:
    """Fit the law and judge it at its targets.

    Args:
        data: points, as `read_law_data` or `law_data` give them.
        form: one form alone, or `auto` for all of `forms`, each weighted by its evidence.
        forms: by default those with a ceiling where each point's base loss is known, else `power`.
        n_bootstrap: number of posterior samples, from which intervals come.
        rng: source of the samples; by default one of seed 0.
        targets: points to predict, of the reference's ranks or of a placement's (`PlacedPoint`);
            status and headline refer to them, and without any to the largest rank, length and
            steps measured, of every placement.
        options: treatment of saturated and outlying points.

    Returns:
        The law with its 90% intervals, its predictions at the targets, its errors at points held
        out, and its status.

    Raises:
        FitError: no form can be fitted to these points.

    Example:
        >>> law = fit_law(read_law_data("points.csv"), targets=[DesignPoint(8, 256, 150)])
        >>> law.fit.status, law.targets[0].low, law.targets[0].high

    Source: arXiv 2605.30260 for the power form; `pmlray.law.fitting.posterior` for the inference.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    options = options or FitOptions()
    chosen = tuple(forms or default_forms(data)) if form == "auto" else (form,)
    average = average_laws(data, chosen, options)
    samples = average.sample(n_bootstrap, rng)
    predicted = predict_targets(data, samples, targets, rng)
    asked = predicted or predict_targets(data, samples, corners(data), rng)
    widths = [(t.where, t.relative_half_width) for t in asked]
    most = math.inf if average.base_loss_known else AT_MOST * average.base_loss
    beyond = [t.where for t in predicted if t.delta_loss > most]
    judgement = judge(data, average.best, widths, beyond)
    fit = replace(average.best, status=judgement.status, message=judgement.message)
    average = replace(average, fits=(fit, *average.fits[1:]))
    drawn = np.concatenate(
        [part.params for part in samples.parts if part.fit.law.form == fit.law.form]
    )
    residuals = residual_structure(data, fit)
    return LawSummary(
        fit=fit,
        judgement=judgement,
        weights=average.by_form,
        samples=drawn,
        intervals=param_intervals(fit.law, drawn, LEVEL),
        r2=r2(data, fit),
        mape=mape(data, fit),
        unseen=UnseenErrors(data, average, chosen, options),
        targets=predicted,
        residuals=residuals,
        checklist=checklist(data, average, len(samples.sigma), residuals),
        average=average,
        average_samples=samples,
    )


def _mean(found: UnseenError | None) -> float | None:
    return None if found is None else found.error
