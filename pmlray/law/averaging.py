"""Several forms of the law held at once, each weighted by how well it predicts what it did not see.

Shapes: F forms, N points.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pmlray.errors import FitError
from pmlray.law.data import FloatArray, LawData
from pmlray.law.diagnostics import extrapolation_errors, heldout_errors
from pmlray.law.fit import LawFit, fit_law
from pmlray.law.forms import CAPPED
from pmlray.law.protocol import Form
from pmlray.law.robust import FitOptions
from pmlray.law.uncertainty import bootstrap_law

log = logging.getLogger(__name__)

# Share error below which forms are equally good: runs do not repeat more closely than that.
LEAST_ERROR = 0.01
# A form with less weight than this changes no interval.
NEGLIGIBLE = 0.02
# Runs imagined for each sample of the law: enough that their number does not blur an interval.
NOISE_DRAWS = 20
# Ranks, lengths and steps are sought between 1 / REACH and REACH.
REACH = 2.0**40


@dataclass(frozen=True, slots=True)
class AveragedLaw:
    """Fitted forms, the weightiest first, and their weights, which add up to 1.

    `base_loss`, nats per token, inf where it is not known: no form is believed beyond it, for no
    run can lower a loss by more than it was.
    """

    fits: tuple[LawFit, ...]
    weights: tuple[float, ...]
    base_loss: float = math.inf

    @property
    def by_form(self) -> dict[Form, float]:
        """The weights by the name of their form."""
        return {fit.law.form: w for fit, w in zip(self.fits, self.weights, strict=True)}

    @property
    def best(self) -> LawFit:
        """The form that has predicted best."""
        return self.fits[0]

    def predict(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """Mean delta_loss in nats per token over the forms, broadcast over the arguments."""
        predicted = [fit.law.predict(lora_rank, seq_len, train_steps) for fit in self.fits]
        within = np.minimum(np.stack(predicted), self.base_loss)
        return np.tensordot(np.array(self.weights), within, axes=1)

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """The rank that reaches delta_loss on average; 0 when any does, inf when none does."""
        return _first_at_least(lambda r: float(self.predict(r, seq_len, train_steps)), delta_loss)

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """The longest l that reaches delta_loss on average; inf when any does, 0 when none does."""
        shortest = _first_at_least(
            lambda x: float(self.predict(lora_rank, 1.0 / x, train_steps)), delta_loss
        )
        return math.inf if shortest == 0 else 1.0 / shortest

    def invert_steps(self, lora_rank: float, seq_len: float, delta_loss: float) -> float:
        """The steps that reach delta_loss on average; 0 when any do, inf when none do."""
        return _first_at_least(lambda t: float(self.predict(lora_rank, seq_len, t)), delta_loss)

    def sample(self, data: LawData, n: int, rng: np.random.Generator) -> AveragedSamples:
        """About n bootstrap samples, each form as many as its weight says; `data` of the fits."""
        parts: list[tuple[LawFit, FloatArray]] = []
        for fit, weight in zip(self.fits, self.weights, strict=True):
            if weight >= NEGLIGIBLE:
                parts.append((fit, bootstrap_law(data, fit, max(1, round(weight * n)), rng)))
        return AveragedSamples(tuple(parts), self.base_loss)


@dataclass(frozen=True, slots=True)
class AveragedSamples:
    """Bootstrap samples (n_f, P_f) of each form that counts: what is believed, as a sample."""

    parts: tuple[tuple[LawFit, FloatArray], ...]
    base_loss: float = math.inf

    def predict(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """delta_loss under every sample, nats per token, (n, ...)."""
        predicted = [
            fit.law.with_params(params).predict(lora_rank, seq_len, train_steps)
            for fit, samples in self.parts
            for params in samples
        ]
        return np.minimum(np.stack(predicted), self.base_loss)

    def interval(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        level: float = 0.9,
    ) -> tuple[FloatArray, FloatArray]:
        """Central interval (low, high) of the law, spread within and between the forms, nats."""
        return _central(self.predict(lora_rank, seq_len, train_steps), level)

    def run_interval(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        rng: np.random.Generator,
        level: float = 0.9,
    ) -> tuple[FloatArray, FloatArray]:
        """Central interval (low, high) of what one new run would measure, nats: the law's, widened
        by each form's residual noise."""
        predicted = self.predict(lora_rank, seq_len, train_steps)
        noises = [fit.noise for fit, samples in self.parts for _ in samples]
        sd = np.stack([noise.sd(mean) for noise, mean in zip(noises, predicted, strict=True)])
        drawn = rng.standard_normal((NOISE_DRAWS, *predicted.shape))
        runs = (predicted + sd * drawn).reshape(-1, *predicted.shape[1:])
        return _central(np.minimum(runs, self.base_loss), level)


def _central(drawn: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return low, high


def average_laws(
    data: LawData, forms: Sequence[Form], options: FitOptions | None = None
) -> AveragedLaw:
    """Fit every form that these points carry and weigh them by their error on held-out points.

    options: how points count, in these fits and in those without the held-out points. FitError when
    no form can be fitted.
    """
    fits: list[LawFit] = []
    reasons: list[str] = []
    for form in forms:
        try:
            fits.append(fit_law(data, form, options=options))
        except FitError as error:
            reasons.append(f"{form}: {error}")
    if not fits:
        raise FitError("; ".join(reasons))
    weights = form_weights(data, fits)
    # Among equals a capped form first: it holds at saturation too.
    order = sorted(range(len(fits)), key=lambda f: (-weights[f], fits[f].law.form not in CAPPED))
    known = data.base_loss[np.isfinite(data.base_loss)]
    return AveragedLaw(
        tuple(fits[f] for f in order),
        tuple(weights[f] for f in order),
        float(np.median(known)) if known.size else math.inf,
    )


def form_weights(data: LawData, fits: Sequence[LawFit]) -> tuple[float, ...]:
    """Weights of fitted forms, proportional to (mean squared error)^(-n/2), in the order given.

    That is the likelihood of n independent held-out cells under each form's own error (pseudo-BMA,
    Yao et al. 2018, doi:10.1214/17-BA1091). The cells are those at the largest length and at the
    largest rank, predicted from the smaller ones, else those left out one at a time; only points
    that every form predicts count, so that a form is not judged by what its filter sets aside.
    Where nothing can be held out the forms weigh the same.
    """
    if len(fits) == 1:
        return (1.0,)
    twice = np.concatenate([data.cells(), data.cells()])
    errors_FN = np.stack(
        [np.concatenate(extrapolation_errors(data, f.law.form, f.law, f.options)) for f in fits]
    )
    known = np.all(np.isfinite(errors_FN), axis=0)
    if not known.any():
        errors_FN = np.stack([heldout_errors(data, fit) for fit in fits])
        known = np.all(np.isfinite(errors_FN), axis=0)
        twice = data.cells()
    if not known.any():
        return tuple(1.0 / len(fits) for _ in fits)
    n_cells = np.unique(twice[known]).size
    mse_F = np.mean(errors_FN[:, known] ** 2, axis=1) + LEAST_ERROR**2
    log_weight_F = -n_cells / 2.0 * np.log(mse_F)
    weight_F = np.exp(log_weight_F - log_weight_F.max())
    weight_F /= weight_F.sum()
    shown = ", ".join(
        f"{fit.law.form} {weight:.2f}" for fit, weight in zip(fits, weight_F, strict=True)
    )
    log.info("weights by held-out error: %s", shown)
    return tuple(weight_F.tolist())


def _first_at_least(rising: Callable[[float], float], wanted: float) -> float:
    """Where a rising function of a positive number reaches `wanted`: 0 if everywhere, inf if
    nowhere within reach."""
    low, high = 1.0 / REACH, REACH
    if rising(low) >= wanted:
        return 0.0
    if rising(high) < wanted:
        return math.inf
    for _ in range(200):
        middle = math.sqrt(low * high)
        if middle in (low, high):
            break
        low, high = (low, middle) if rising(middle) >= wanted else (middle, high)
    return high
