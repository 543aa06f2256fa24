"""Laws capped by the base loss: a loss cannot fall below 0, so delta_loss cannot exceed L0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray
from pmlray.law.forms.drift import Drift
from pmlray.law.forms.power import PowerLaw
from pmlray.law.forms.protocol import Form, Law
from pmlray.law.forms.saturation import (
    saturate,
    saturate_exponentially,
    unsaturate,
    unsaturate_exponentially,
)


class _CappedLaw(ABC):
    """Base of the capped forms: delta_loss = cap(z, L0), z the power law with offset u."""

    __slots__ = ()

    @property
    @abstractmethod
    def uncapped(self) -> PowerLaw:
        """Power law z without its ceiling."""

    @abstractmethod
    def _base_losses(self, given: ArrayLike | None) -> FloatArray:
        """Return the base losses given, else the law's own L0."""

    @abstractmethod
    def _cap(self, z: FloatArray, base_loss: FloatArray) -> tuple[FloatArray, ...]:
        """Return delta_loss, d delta/dz, and d delta by each parameter that z lacks."""

    @abstractmethod
    def _uncap(self, delta_loss: float) -> float:
        """Return the z that the cap turns into delta_loss; inf at or above L0."""

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent][, log_sharpness]."""
        return self.uncapped.param_names

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        return self.uncapped.params

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return delta_loss in nats per token; `base_loss` (nats per token) replaces the law's
        own."""
        cap = self._base_losses(base_loss)
        return self._cap(self.uncapped.predict(lora_rank, seq_len, train_steps), cap)[0]

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return d delta / d params, shape (N, P): (d delta/dz) dz/dparams, then the cap's own.

        The factors are derived in pmlray.law.forms.saturation.
        """
        cap = self._base_losses(base_loss)
        r, length, t, cap = (
            x.ravel() for x in np.broadcast_arrays(lora_rank, seq_len, train_steps, cap)
        )
        _, slope, *own = self._cap(self.uncapped.predict(r, length, t), cap)
        return np.column_stack([slope[:, None] * self.uncapped.jacobian(r, length, t), *own])

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """Return the rank at which the capped law reaches delta_loss; inf at or above L0."""
        return self.uncapped.invert_rank(seq_len, train_steps, self._uncap(delta_loss))

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """Return the length at which the capped law reaches delta_loss; 0 at or above L0."""
        return self.uncapped.invert_len(lora_rank, train_steps, self._uncap(delta_loss))

    def invert_steps(self, lora_rank: float, seq_len: float, delta_loss: float) -> float:
        """Return the steps at which the capped law reaches delta_loss; inf at or above L0."""
        return self.uncapped.invert_steps(lora_rank, seq_len, self._uncap(delta_loss))


def _uncapped(law: Law) -> PowerLaw:
    return PowerLaw(
        law.coef,
        law.rank_exponent,
        law.len_exponent,
        law.offset,
        law.budget_exponent,
        law.ref_steps,
        law.fits_budget,
        law.drift,
    )


@dataclass(frozen=True, slots=True)
class CeilingLaw(_CappedLaw):
    """delta_loss = z / (1 + (z/L0)^n)^(1/n), z the power law with offset u, L0 the base loss.

    The form that describes the paper's own points best (their figure 2a: R2 0.9990 against 0.9959
    of the power form). Units: delta_loss, z, u and L0 nats per token, n none. z <= 0 gives
    delta_loss = z. `params` are those of the power law z, then log n.
    """

    coef: float
    rank_exponent: float
    len_exponent: float
    offset: float
    sharpness: float
    base_loss: float
    budget_exponent: float = 0.0
    ref_steps: float = 1.0
    fits_budget: bool = False
    drift: Drift | None = None

    @property
    def form(self) -> Form:
        """`ceiling`."""
        return "ceiling"

    @property
    def uncapped(self) -> PowerLaw:
        """Power law z without its ceiling."""
        return _uncapped(self)

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent], log_sharpness."""
        return (*self.uncapped.param_names, "log_sharpness")

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        return np.append(self.uncapped.params, math.log(self.sharpness))

    def with_params(self, params: ArrayLike) -> Self:
        """Return the same law with other free parameters, shape (P,)."""
        values = np.asarray(params, dtype=float)
        z = self.uncapped.with_params(values[:-1])
        return replace(
            self,
            **z.free_fields(),
            sharpness=math.exp(values[-1]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the form."""
        return {"form": self.form, **asdict(self)}

    def _base_losses(self, given: ArrayLike | None) -> FloatArray:
        return np.asarray(self.base_loss if given is None else given, dtype=float)

    def _cap(self, z: FloatArray, base_loss: FloatArray) -> tuple[FloatArray, ...]:
        return saturate(z, base_loss, self.sharpness)

    def _uncap(self, delta_loss: float) -> float:
        return float(unsaturate(delta_loss, self.base_loss, self.sharpness))


@dataclass(frozen=True, slots=True)
class ExponentialCeilingLaw(_CappedLaw):
    """delta_loss = L0 (1 - exp(-z/L0)), z the power law with offset u, L0 the base loss.

    The share of the loss that is left falls exponentially in z: a rival of `ceiling` without its
    sharpness, which bends earlier. Units: delta_loss, z, u and L0 nats per token. z <= 0 gives
    delta_loss = z. `params` are those of the power law z.
    """

    coef: float
    rank_exponent: float
    len_exponent: float
    offset: float
    base_loss: float
    budget_exponent: float = 0.0
    ref_steps: float = 1.0
    fits_budget: bool = False
    drift: Drift | None = None

    @property
    def form(self) -> Form:
        """`exponential_ceiling`."""
        return "exponential_ceiling"

    @property
    def uncapped(self) -> PowerLaw:
        """Power law z without its ceiling."""
        return _uncapped(self)

    def with_params(self, params: ArrayLike) -> Self:
        """Return the same law with other free parameters, shape (P,)."""
        z = self.uncapped.with_params(params)
        return replace(
            self,
            **z.free_fields(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the form."""
        return {"form": self.form, **asdict(self)}

    def _base_losses(self, given: ArrayLike | None) -> FloatArray:
        return np.asarray(self.base_loss if given is None else given, dtype=float)

    def _cap(self, z: FloatArray, base_loss: FloatArray) -> tuple[FloatArray, ...]:
        return saturate_exponentially(z, base_loss)

    def _uncap(self, delta_loss: float) -> float:
        return float(unsaturate_exponentially(delta_loss, self.base_loss))
