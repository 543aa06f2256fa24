"""The two forms of the memory law: the paper's power law and one that the base loss caps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmlray.errors import DataError
from pmlray.law.data import FloatArray
from pmlray.law.protocol import Form, Law
from pmlray.law.saturation import saturate, unsaturate


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """delta_loss = C r^alpha l^-beta (t / t_ref)^gamma + b; arXiv 2605.30260, the law.

    `params` are (log C, alpha, beta, b) and gamma when `fits_budget`. Where gamma is 0 and fixed,
    t is not read. `base_loss` arguments are ignored: this form has no ceiling.
    """

    coef: float
    rank_exponent: float
    len_exponent: float
    offset: float
    budget_exponent: float = 0.0
    ref_steps: float = 1.0
    fits_budget: bool = False

    @property
    def form(self) -> Form:
        """`power`."""
        return "power"

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent]."""
        names = ("log_coef", "rank_exponent", "len_exponent", "offset")
        return (*names, "budget_exponent") if self.fits_budget else names

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        values = [math.log(self.coef), self.rank_exponent, self.len_exponent, self.offset]
        return np.array([*values, self.budget_exponent] if self.fits_budget else values)

    def with_params(self, params: ArrayLike) -> PowerLaw:
        """The same law with other free parameters, shape (P,)."""
        values = np.asarray(params, dtype=float).tolist()
        return replace(
            self,
            coef=math.exp(values[0]),
            rank_exponent=values[1],
            len_exponent=values[2],
            offset=values[3],
            budget_exponent=values[4] if self.fits_budget else self.budget_exponent,
        )

    def _log_budget(self, train_steps: ArrayLike) -> FloatArray:
        # A law without a budget term must not read t, which is 0 where it is unknown.
        if self.fits_budget or self.budget_exponent != 0.0:
            return np.log(np.asarray(train_steps, dtype=float) / self.ref_steps)
        return np.zeros(np.shape(train_steps))

    def _amplitude(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        exponent = (
            math.log(self.coef)
            + self.rank_exponent * np.log(lora_rank)
            - self.len_exponent * np.log(seq_len)
            + self.budget_exponent * self._log_budget(train_steps)
        )
        return np.asarray(np.exp(exponent), dtype=float)

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """delta_loss in nats per token, broadcast over the arguments."""
        return self._amplitude(lora_rank, seq_len, train_steps) + self.offset

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """d delta / d params, shape (N, P).

        With a = C r^alpha l^-beta (t/t_ref)^gamma: da/dlogC = a, da/dalpha = a log r,
        da/dbeta = -a log l, da/dgamma = a log(t/t_ref), and d delta/db = 1.
        """
        a, log_r, log_l, log_t = (
            x.ravel()
            for x in np.broadcast_arrays(
                self._amplitude(lora_rank, seq_len, train_steps),
                np.log(lora_rank),
                np.log(seq_len),
                self._log_budget(train_steps),
            )
        )
        columns = [a, a * log_r, -a * log_l, np.ones_like(a)]
        return np.stack([*columns, a * log_t] if self.fits_budget else columns, axis=1)

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """r = ((delta - b) / (C l^-beta (t/t_ref)^gamma))^(1/alpha)."""
        need = delta_loss - self.offset
        at_one = float(self._amplitude(1.0, seq_len, train_steps))
        if need <= 0:
            return 0.0
        if self.rank_exponent == 0:
            return 0.0 if at_one >= need else math.inf
        return _exp((math.log(need) - math.log(at_one)) / self.rank_exponent)

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """l = (C r^alpha (t/t_ref)^gamma / (delta - b))^(1/beta)."""
        need = delta_loss - self.offset
        at_one = float(self._amplitude(lora_rank, 1.0, train_steps))
        if need <= 0:
            return math.inf
        if self.len_exponent == 0:
            return math.inf if at_one >= need else 0.0
        return _exp((math.log(at_one) - math.log(need)) / self.len_exponent)

    def to_json(self) -> dict[str, Any]:
        """All fields and the form."""
        return {"form": self.form, **asdict(self)}


@dataclass(frozen=True, slots=True)
class CeilingLaw:
    """delta_loss = z / (1 + (z/L0)^n)^(1/n), z the power law with offset u, L0 the base loss.

    A loss cannot fall below 0, so delta_loss cannot exceed L0. z <= 0 gives delta_loss = z.
    `params` are those of the power law z, then log n.
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

    @property
    def form(self) -> Form:
        """`ceiling`."""
        return "ceiling"

    @property
    def uncapped(self) -> PowerLaw:
        """z, the law without its ceiling."""
        return PowerLaw(
            self.coef,
            self.rank_exponent,
            self.len_exponent,
            self.offset,
            self.budget_exponent,
            self.ref_steps,
            self.fits_budget,
        )

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent], log_sharpness."""
        return (*self.uncapped.param_names, "log_sharpness")

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        return np.append(self.uncapped.params, math.log(self.sharpness))

    def with_params(self, params: ArrayLike) -> CeilingLaw:
        """The same law with other free parameters, shape (P,)."""
        values = np.asarray(params, dtype=float)
        z = self.uncapped.with_params(values[:-1])
        return CeilingLaw(
            z.coef,
            z.rank_exponent,
            z.len_exponent,
            z.offset,
            math.exp(values[-1]),
            self.base_loss,
            z.budget_exponent,
            z.ref_steps,
            z.fits_budget,
        )

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """delta_loss in nats per token; `base_loss` (nats per token) replaces the law's own."""
        cap = self.base_loss if base_loss is None else base_loss
        return saturate(
            self.uncapped.predict(lora_rank, seq_len, train_steps), cap, self.sharpness
        )[0]

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """d delta / d params, shape (N, P): (d delta/dz) dz/dparams, then d delta/dlog n.

        Both factors are derived in `saturate`.
        """
        cap = self.base_loss if base_loss is None else base_loss
        r, length, t, cap = (
            x.ravel() for x in np.broadcast_arrays(lora_rank, seq_len, train_steps, cap)
        )
        _, slope, by_log_n = saturate(self.uncapped.predict(r, length, t), cap, self.sharpness)
        return np.column_stack([slope[:, None] * self.uncapped.jacobian(r, length, t), by_log_n])

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """The rank at which z is what the ceiling turns into delta_loss; inf at or above L0."""
        return self.uncapped.invert_rank(seq_len, train_steps, self._uncap(delta_loss))

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """The length at which z is what the ceiling turns into delta_loss; 0 at or above L0."""
        return self.uncapped.invert_len(lora_rank, train_steps, self._uncap(delta_loss))

    def _uncap(self, delta_loss: float) -> float:
        return float(unsaturate(delta_loss, self.base_loss, self.sharpness))

    def to_json(self) -> dict[str, Any]:
        """All fields and the form."""
        return {"form": self.form, **asdict(self)}


_FORMS: dict[str, type[PowerLaw] | type[CeilingLaw]] = {"power": PowerLaw, "ceiling": CeilingLaw}


def law_from_json(stored: Mapping[str, Any]) -> Law:
    """Rebuild a law from `to_json`'s form; DataError when the form or a field is not known."""
    values = {k: v for k, v in stored.items() if k != "form"}
    try:
        return _FORMS[stored["form"]](**values)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"not a stored law ({error!r}); expected a form of {', '.join(_FORMS)} and its fields"
        ) from error
