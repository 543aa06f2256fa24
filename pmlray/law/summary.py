"""Summary of a fitted law: its parameters, predictions and diagnostics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray
from pmlray.law.fitting.averaging import AveragedLaw, AveragedSamples
from pmlray.law.fitting.fit import FitStatus, LawFit
from pmlray.law.forms.protocol import Form
from pmlray.law.placement_choice import PlacementChoice, choices_at
from pmlray.law.prediction import LawPrediction, predict_points
from pmlray.law.sizing import SURE_LOSS, Sizing, size_for
from pmlray.law.summary_json import (
    correlations_json,
    residuals_json,
    target_json,
    unseen_json,
    worths_json,
)
from pmlray.law.target_predictions import TargetPrediction
from pmlray.law.validation.checklist import LEVEL
from pmlray.law.validation.judgement import Judgement
from pmlray.law.validation.residuals import ResidualStructure
from pmlray.law.validation.unseen import UnseenError, UnseenErrors
from pmlray.notebook_html import facts_html


@dataclass(frozen=True, slots=True, repr=False)
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
        >>> law = fit_law(read_law_data("searches/tables/smollm2_phonebook.csv"))
        >>> law
        LawSummary(ceiling law of 324 points, CONVERGED)
        >>> print(law.headline, *law.limits)
        At the largest rank and length, ...
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

    def __repr__(self) -> str:
        return f"LawSummary({self.title})"

    def _repr_html_(self) -> str:
        fitted = {
            name: f"{getattr(self.fit.law, name):.4g} [{low:.4g}, {high:.4g}]"
            for name, (low, high) in self.intervals.items()
        }
        at_targets = {
            f"delta_loss at {t.name}, {t.point.train_steps} steps": f"{t.delta_loss:.4g}"
            f" [{t.low:.4g}, {t.high:.4g}]{', far beyond the points' if t.far else ''}"
            for t in self.targets
        }
        told = {"status": self.fit.message} if self.fit.message else {}
        return facts_html(self.title, {"headline": self.headline, **told, **fitted, **at_targets})

    @property
    def title(self) -> str:
        """Form, number of points fitted and status, in a few words."""
        fit = self.fit
        return f"{fit.law.form} law of {fit.n_obs} points, {fit.status.name}"

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike | None = None,
        placement: str | None = None,
    ) -> LawPrediction:
        """Predict the loss reduction at points, with all forms and all their doubt.

        Args:
            lora_rank, seq_len, train_steps: numbers or lists, which broadcast; the steps may be
                left out where the points have one number of steps, or do not say theirs.
            placement: name of the one whose ranks are meant, where the law has several; by default
                the first, its reference.

        Returns:
            Median and 90% interval in nats per token, that of one new run, and whether a point lies
            far beyond those measured.

        Raises:
            DataError: a number below 1, steps or a placement of which the law tells nothing.

        Example:
            >>> law = fit_law(read_law_data("searches/tables/smollm2_phonebook.csv"))
            >>> law.predict(lora_rank=[1, 4, 16, 400], seq_len=640, train_steps=160).far
            array([False, False, False,  True])
        """
        where = (lora_rank, seq_len, train_steps)
        return predict_points(self.unseen.data, self.average_samples, *where, placement)

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


def _mean(found: UnseenError | None) -> float | None:
    return None if found is None else found.error
