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
from pmlray.law.run_noise import FLOOR_SHARE

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
    (`base_loss_known`), as nothing then says where a law that rises ends. `base_loss_sd`: by how
    much the texts differ in it.
    """

    fits: tuple[LawFit, ...]
    weights: tuple[float, ...]
    base_loss: float = math.inf
    base_loss_known: bool = True
    base_loss_sd: float = 0.0
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
        n_drawn = sum(part.sigma.size for part in parts)
        # What is the largest by chance is no mean of anything.
        n_texts = np.unique(self.posteriors[0].data.cluster).size if self.base_loss_known else 1
        below = np.abs(rng.standard_normal(n_drawn)) * self.base_loss_sd / math.sqrt(n_texts)
        return AveragedSamples(
            tuple(parts), self.base_loss, self.base_loss - below, self.base_loss_sd
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """Samples of one form: its law's params (n, P), and the noise's sigma (n,)."""

    fit: LawFit
    params: FloatArray
    sigma: FloatArray


@dataclass(frozen=True, slots=True)
class AveragedSamples:
    """What is believed, as samples of every form that has any.

    `caps` (n,), nats per token: the base loss of the texts on average, as surely as it is known,
    and never more than that of those measured; `base_loss_sd`: by how much single texts differ from
    it. No delta_loss is believed below 0 or above its cap.
    """

    parts: tuple[Drawn, ...]
    base_loss: float
    caps: FloatArray
    base_loss_sd: float

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
        stacked = np.stack(predicted)
        caps = self.caps.reshape(-1, *(1,) * (stacked.ndim - 1))
        return np.clip(stacked, 0.0, caps)

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
        shape = (NOISE_DRAWS, *predicted.shape)
        runs = predicted + sd * rng.standard_normal(shape)
        of_text = self.base_loss + self.base_loss_sd * rng.standard_normal(shape)
        runs = np.clip(runs, 0.0, np.maximum(of_text, 0.0))
        return _central(runs.reshape(-1, *predicted.shape[1:]), level)


def _central(drawn: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return low, high


def _between_texts(data: LawData) -> float:
    """Standard deviation of the base loss over the texts, nats per token; 0 of a single one."""
    _, text, counts = np.unique(data.cluster, return_inverse=True, return_counts=True)
    means = np.bincount(text.reshape(-1), data.base_loss) / counts
    return float(means.std(ddof=1)) if means.size > 1 else 0.0


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
    known = np.isfinite(data.base_loss)
    if known.any():
        ceiling = float(np.median(data.base_loss[known]))
        spread = max(_between_texts(data.subset(known)), FLOOR_SHARE * ceiling)
    else:
        ceiling = float(np.max(data.delta_loss))
        spread = FLOOR_SHARE * abs(ceiling)
    return AveragedLaw(
        tuple(form_fit(found[f], options) for f in order),
        tuple(weights[f] for f in order),
        ceiling,
        bool(known.any()),
        spread,
        tuple(found[f] for f in order),
    )
