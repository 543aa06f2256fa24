"""Average of several forms of the law, each weighted by its evidence.

Shapes: F forms, N points, n samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from pmlray.errors import DataError
from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.base_trend import BaseTrend, base_trend
from pmlray.law.fitting.fit import FitOptions, LawFit
from pmlray.law.fitting.posterior import FormPosterior, all_posteriors, evidence_weights, form_fit
from pmlray.law.fitting.sample_predictions import predict_placed_samples, predict_samples
from pmlray.law.fitting.site_effects import FittedPlaces, log_params_ratio
from pmlray.law.forms.ceiling import CeilingLaw, ExponentialCeilingLaw
from pmlray.law.forms.protocol import Form, Law
from pmlray.law.forms.registry import CAPPED
from pmlray.law.forms.rescaled import in_ranks_of
from pmlray.law.placements import Placement

# Forms fitted where the base loss is known, and where it is not. The paper's `power` form does not
# bend before saturation, and predicts held-out runs worse where a ceiling is known.
DEFAULT_FORMS: tuple[Form, ...] = ("ceiling", "exponential_ceiling")
UNCAPPED_FORMS: tuple[Form, ...] = ("power",)
# Simulated runs for each sample of the law: enough that their number does not widen an interval.
NOISE_DRAWS = 20


@dataclass(frozen=True, slots=True)
class AveragedLaw:
    """Fitted forms, by falling weight, and their weights, which add up to 1. Where there are
    several placements a form comes once for each scale of what these differ by.

    `base`: upper bound of every prediction, as no run can lower a loss by more than it was.
    """

    fits: tuple[LawFit, ...]
    weights: tuple[float, ...]
    base: BaseTrend
    posteriors: tuple[FormPosterior, ...] = field(default=(), repr=False)

    @property
    def base_loss(self) -> float:
        """Typical base loss, nats per token, or the largest delta_loss where none is known."""
        return self.base.typical

    @property
    def base_loss_known(self) -> bool:
        """True where the base loss of any point is known."""
        return self.base.known

    @property
    def by_form(self) -> dict[Form, float]:
        """Weights by the name of their form."""
        found: dict[Form, float] = {}
        for fit, weight in zip(self.fits, self.weights, strict=True):
            found[fit.law.form] = found.get(fit.law.form, 0.0) + weight
        return found

    @property
    def best(self) -> LawFit:
        """Fit of the form with the largest weight."""
        return self.fits[0]

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        placement: Placement | None = None,
    ) -> FloatArray:
        """Return the mean delta_loss in nats per token over the forms' likeliest laws, broadcast.

        placement: whose ranks are given; by default the reference's.
        """
        base = self.base.at(seq_len)
        laws = [fit.law if placement is None else fit.law_at(placement) for fit in self.fits]
        predicted = [law.predict(lora_rank, seq_len, train_steps, base) for law in laws]
        within = np.minimum(np.stack(predicted), base)
        return np.tensordot(np.array(self.weights), within, axes=1)

    def predict_points(self, points: LawData) -> FloatArray:
        """Return the mean delta_loss, nats per token, (N,), at points with the law's placements."""
        base, at = self.base.at(points.seq_len), (points.seq_len, points.train_steps)
        predicted = [fit.law.predict(fit.law_ranks(points), *at, base) for fit in self.fits]
        within = np.minimum(np.stack(predicted), base)
        return np.tensordot(np.array(self.weights), within, axes=1)

    def sample(self, n: int, rng: np.random.Generator) -> AveragedSamples:
        """Draw about n posterior samples, as many from each form as its weight gives."""
        counts = rng.multinomial(n, self.weights).tolist()
        parts: list[Drawn] = []
        for fit, found, count in zip(self.fits, self.posteriors, counts, strict=True):
            if count:
                params, sigma = found.sample(count, rng)
                n_law = found.model.n_law
                effects = params[:, n_law:] if params.shape[1] > n_law else None
                parts.append(Drawn(fit, params[:, :n_law], sigma, effects))
        n_drawn = sum(part.sigma.size for part in parts)
        shift = rng.standard_normal(n_drawn) * self.base.sd / math.sqrt(self.base.n_texts)
        # Without a base loss no prediction exceeds the largest delta_loss.
        shift = shift if self.base.known else -np.abs(shift)
        return AveragedSamples(tuple(parts), self.base, shift)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of one form: its law's params (n, P), the noise's sigma (n,), and the effects of
    placements (n, T), None where the points have one placement and say nothing of them."""

    fit: LawFit
    params: FloatArray
    sigma: FloatArray
    effects: FloatArray | None = None

    def log_worth(self, placement: Placement, *, own: bool = True) -> FloatArray:
        """Return log w of a placement under every sample, (n,); own: a placement without points
        draws its own deviation from its kin."""
        places = self._places()
        effects = self.effects
        if effects is None:
            effects = places.effects.drawn(self.sigma.size)
        return places.effects.log_worth_of(placement, effects, drawn=own)

    def log_factor(self, placement: Placement) -> FloatArray:
        """Return the log of how many ranks of the reference one of a placement is worth, (n,)."""
        reference = self._places().effects.placements[0]
        return self.log_worth(placement) + log_params_ratio(placement, reference)

    def _places(self) -> FittedPlaces:
        if self.fit.places is None:
            raise DataError(
                "the points of this law do not say where their adapters sit, so nothing tells what"
                " other placements are worth: give their placement and its parameters"
            )
        return self.fit.places


@dataclass(frozen=True, slots=True)
class AveragedSamples:
    """Posterior samples of the law, from every form that has any.

    `base`: the base loss, the upper bound of delta_loss. `shift` (n,), nats per token: each
    sample's deviation from it, with the standard error of the mean over the texts. `placement`:
    whose ranks are meant, None for those of the reference.
    """

    parts: tuple[Drawn, ...]
    base: BaseTrend
    shift: FloatArray
    placement: Placement | None = None

    def at(self, placement: Placement) -> AveragedSamples:
        """Return the same samples in ranks of a placement, which may have had no points: then its
        own deviation from its kin is drawn from the prior."""
        return replace(self, placement=placement)

    def log_worth(self, placement: Placement) -> FloatArray:
        """Return log w of a placement under every sample, (n,): what one of its parameters is
        worth beside one of the reference's."""
        return np.concatenate([part.log_worth(placement) for part in self.parts])

    def log_worth_of_kin(self, placement: Placement) -> FloatArray:
        """Return `log_worth` of a placement without points whose own deviation is 0."""
        return np.concatenate([part.log_worth(placement, own=False) for part in self.parts])

    @property
    def laws(self) -> list[Law]:
        """All samples as laws, in ranks of the placement."""
        laws = [part.fit.law.with_params(params) for part in self.parts for params in part.params]
        if self.placement is None:
            return laws
        factors = np.concatenate([part.log_factor(self.placement) for part in self.parts])
        return [in_ranks_of(law, x) for law, x in zip(laws, factors.tolist(), strict=True)]

    def laws_at(self, seq_len: float) -> list[Law]:
        """Return all samples as laws whose ceiling is the base loss of texts of a given length."""
        caps = float(self.base.at(seq_len)) + self.shift

        def capped(law: Law, cap: float) -> Law:
            known = isinstance(law, CeilingLaw | ExponentialCeilingLaw)
            return replace(law, base_loss=cap) if known else law

        return [capped(law, cap) for law, cap in zip(self.laws, caps.tolist(), strict=True)]

    @property
    def sigma(self) -> FloatArray:
        """Noise's sigma of every sample, (n,)."""
        return np.concatenate([part.sigma for part in self.parts])

    def predict(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """Return delta_loss under every sample, nats per token, (n, ...)."""
        n_axes = np.broadcast(lora_rank, seq_len, train_steps).ndim
        shift = self.shift.reshape(-1, *[1] * n_axes)
        cap = self.base.at(seq_len) + shift
        predicted: list[FloatArray] = []
        for part, where in zip(self.parts, self._places, strict=True):
            at = (lora_rank, seq_len, train_steps, cap[where])
            if self.placement is None:
                predicted.append(predict_samples(part.fit.law, part.params, *at))
            else:
                factor = part.log_factor(self.placement)
                predicted.append(predict_placed_samples(part.fit.law, part.params, factor, *at))
        # A prediction near 0 is no more certain than the ceiling is.
        return np.clip(np.concatenate(predicted), np.abs(shift), cap)

    @property
    def _places(self) -> list[slice]:
        """Slices of each part's samples among all samples."""
        ends = np.cumsum([part.sigma.size for part in self.parts]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def interval(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        level: float = 0.9,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the central interval (low, high) of the law, nats, with the spread within and
        between the forms."""
        return _central(self.predict(lora_rank, seq_len, train_steps), level)

    def run_interval(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        rng: np.random.Generator,
        level: float = 0.9,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the central interval (low, high) of the delta_loss that one new run of a new text
        would measure, nats."""
        predicted = self.predict(lora_rank, seq_len, train_steps)
        base = self.base.at(seq_len)
        of_parts: list[FloatArray] = []
        for part, where in zip(self.parts, self._places, strict=True):
            noise = part.fit.noise
            sigma = part.sigma.reshape(-1, *[1] * (predicted.ndim - 1))
            of_parts.append(np.hypot(sigma * noise.unit(predicted[where], base), noise.floor))
        sd = np.concatenate(of_parts)
        shape = (NOISE_DRAWS, *predicted.shape)
        runs = predicted + sd * rng.standard_normal(shape)
        of_text = base + self.base.sd * rng.standard_normal(shape)
        runs = np.clip(runs, 0.0, np.maximum(of_text, 0.0))
        return _central(runs.reshape(-1, *predicted.shape[1:]), level)


def _central(drawn: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return low, high


def default_forms(data: LawData) -> tuple[Form, ...]:
    """Return the forms fitted by default: those with a ceiling where every point's base loss is
    known, else the power form."""
    return UNCAPPED_FORMS if np.any(np.isnan(data.base_loss)) else DEFAULT_FORMS


def average_laws(
    data: LawData, forms: Sequence[Form] | None = None, options: FitOptions | None = None
) -> AveragedLaw:
    """Fit all forms that these points can identify, and weigh them by their evidence.

    forms: by default `default_forms`; options: how points count. FitError when no form can be
    fitted.
    """
    options = options or FitOptions()
    found = all_posteriors(data, forms or default_forms(data), options)
    weights = evidence_weights(found)
    # Of equal weights a capped form comes first: it is valid at saturation too.
    order = sorted(
        range(len(found)), key=lambda f: (-weights[f], found[f].model.form not in CAPPED)
    )
    return AveragedLaw(
        tuple(form_fit(found[f], options) for f in order),
        tuple(weights[f] for f in order),
        base_trend(data),
        tuple(found[f] for f in order),
    )
