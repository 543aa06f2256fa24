"""Several forms of the law held at once, each weighted by its evidence.

Shapes: F forms, N points, n samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fit import FitOptions, LawFit
from pmlray.law.forms import CAPPED
from pmlray.law.posterior import FormPosterior, all_posteriors, evidence_weights, form_fit
from pmlray.law.protocol import Form, Law

# What is fitted where the base loss is known, and where it is not. The paper's `power` form, which
# nothing bends before saturation, predicts held-out runs worse where a ceiling is known.
DEFAULT_FORMS: tuple[Form, ...] = ("ceiling", "exponential_ceiling")
UNCAPPED_FORMS: tuple[Form, ...] = ("power",)
# Runs imagined for each sample of the law: enough that their number does not blur an interval.
NOISE_DRAWS = 20


@dataclass(frozen=True, slots=True)
class AveragedLaw:
    """Fitted forms, the weightiest first, and their weights, which add up to 1.

    `base_loss`, nats per token: the most that is believed of any form, since no run can lower a
    loss by more than it was; the largest delta_loss measured where it is not known
    (`base_loss_known`), as nothing then says where a law that rises ends.
    """

    fits: tuple[LawFit, ...]
    weights: tuple[float, ...]
    base_loss: float = math.inf
    base_loss_known: bool = True
    posteriors: tuple[FormPosterior, ...] = field(default=(), repr=False)

    @property
    def by_form(self) -> dict[Form, float]:
        """The weights by the name of their form."""
        return {fit.law.form: w for fit, w in zip(self.fits, self.weights, strict=True)}

    @property
    def best(self) -> LawFit:
        """The weightiest form."""
        return self.fits[0]

    def predict(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """Mean delta_loss in nats per token over the forms' likeliest laws, broadcast."""
        predicted = [fit.law.predict(lora_rank, seq_len, train_steps) for fit in self.fits]
        within = np.minimum(np.stack(predicted), self.base_loss)
        return np.tensordot(np.array(self.weights), within, axes=1)

    def sample(self, n: int, rng: np.random.Generator) -> AveragedSamples:
        """About n samples of what is believed, each form as many as its weight says."""
        counts = rng.multinomial(n, self.weights).tolist()
        parts: list[Drawn] = []
        for fit, found, count in zip(self.fits, self.posteriors, counts, strict=True):
            if count:
                parts.append(Drawn(fit, *found.sample(count, rng)))
        return AveragedSamples(tuple(parts), self.base_loss)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of one form: its law's params (n, P), and the noise's sigma (n,)."""

    fit: LawFit
    params: FloatArray
    sigma: FloatArray


@dataclass(frozen=True, slots=True)
class AveragedSamples:
    """What is believed, as samples of every form that has any."""

    parts: tuple[Drawn, ...]
    base_loss: float = math.inf

    @property
    def laws(self) -> list[Law]:
        """Every sample as a law."""
        return [part.fit.law.with_params(params) for part in self.parts for params in part.params]

    @property
    def sigma(self) -> FloatArray:
        """The noise's sigma of every sample, (n,)."""
        return np.concatenate([part.sigma for part in self.parts])

    def predict(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        """delta_loss under every sample, nats per token, (n, ...)."""
        predicted = [law.predict(lora_rank, seq_len, train_steps) for law in self.laws]
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
        """Central interval (low, high) of what one new run of a new text would measure, nats."""
        predicted = self.predict(lora_rank, seq_len, train_steps)
        sizes = [(part.fit.noise, sigma) for part in self.parts for sigma in part.sigma.tolist()]
        sd = np.stack(
            [
                np.hypot(sigma * noise.unit(mean), noise.floor)
                for (noise, sigma), mean in zip(sizes, predicted, strict=True)
            ]
        )
        drawn = rng.standard_normal((NOISE_DRAWS, *predicted.shape))
        runs = (predicted + sd * drawn).reshape(-1, *predicted.shape[1:])
        return _central(np.minimum(runs, self.base_loss), level)


def _central(drawn: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return low, high


def default_forms(data: LawData) -> tuple[Form, ...]:
    """The forms that are fitted where none are named: those that the base loss caps, where every
    point has one."""
    return UNCAPPED_FORMS if np.any(np.isnan(data.base_loss)) else DEFAULT_FORMS


def average_laws(
    data: LawData, forms: Sequence[Form] | None = None, options: FitOptions | None = None
) -> AveragedLaw:
    """What is believed of the law after these points, over all forms that they carry.

    forms: by default `default_forms`; options: how points count. FitError when no form can be
    fitted.
    """
    options = options or FitOptions()
    found = all_posteriors(data, forms or default_forms(data), options)
    weights = evidence_weights(found)
    # Among equals a capped form first: it holds at saturation too.
    order = sorted(
        range(len(found)), key=lambda f: (-weights[f], found[f].model.form not in CAPPED)
    )
    known = data.base_loss[np.isfinite(data.base_loss)]
    ceiling = float(np.median(known)) if known.size else float(np.max(data.delta_loss))
    return AveragedLaw(
        tuple(form_fit(found[f], options) for f in order),
        tuple(weights[f] for f in order),
        ceiling,
        bool(known.size),
        tuple(found[f] for f in order),
    )
