"""Power law of the paper (arXiv 2605.30260)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray
from pmlray.law.forms.drift import Drift, rising_place
from pmlray.law.forms.protocol import Form

# Beyond it a float overflows.
LARGEST_EXPONENT = 700.0


def bounded_exp(x: float) -> float:
    """Return e^x; inf where that is too large for a float."""
    return math.inf if x > LARGEST_EXPONENT else math.exp(x)


def solve_power(at_one: float, exponent: float, need: float) -> float:
    """Return x >= 0 with at_one x^exponent = need (exponent >= 0): 0 when any x does, inf when
    none."""
    if need <= 0:
        return 0.0
    if exponent <= 0:
        return 0.0 if at_one >= need else math.inf
    return bounded_exp((math.log(need) - math.log(at_one)) / exponent)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """delta_loss = C r^alpha l^-beta (t / t_ref)^gamma + b; arXiv 2605.30260, the law.

    Units: delta_loss and b nats per token, C nats per token at r = l = 1 and t = t_ref, exponents
    none. `params` are (log C, alpha, beta, b), gamma when `fits_budget`, and those of the `drift`,
    where the exponents are those in the middle of the points. Where gamma is 0 and fixed, t is not
    read. `base_loss` arguments are ignored: this form has no ceiling.
    """

    coef: float
    rank_exponent: float
    len_exponent: float
    offset: float
    budget_exponent: float = 0.0
    ref_steps: float = 1.0
    fits_budget: bool = False
    drift: Drift | None = None

    @property
    def form(self) -> Form:
        """`power`."""
        return "power"

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent][, those of drift]."""
        names = ("log_coef", "rank_exponent", "len_exponent", "offset")
        names = (*names, "budget_exponent") if self.fits_budget else names
        return names if self.drift is None else (*names, *self.drift.names)

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        values = [math.log(self.coef), self.rank_exponent, self.len_exponent, self.offset]
        values = [*values, self.budget_exponent] if self.fits_budget else values
        return np.array(values if self.drift is None else [*values, *self.drift.coefs])

    def with_params(self, params: ArrayLike) -> PowerLaw:
        """Return the same law with other free parameters, shape (P,)."""
        values = np.asarray(params, dtype=float).tolist()
        coefs = tuple(values[5 if self.fits_budget else 4 :])
        return replace(
            self,
            coef=math.exp(values[0]),
            rank_exponent=values[1],
            len_exponent=values[2],
            offset=values[3],
            budget_exponent=values[4] if self.fits_budget else self.budget_exponent,
            drift=None if self.drift is None else replace(self.drift, coefs=coefs),
        )

    def free_fields(self) -> dict[str, Any]:
        """Return the fields that `with_params` sets, by name, for the forms built on this one."""
        return {
            "coef": self.coef,
            "rank_exponent": self.rank_exponent,
            "len_exponent": self.len_exponent,
            "offset": self.offset,
            "budget_exponent": self.budget_exponent,
            "drift": self.drift,
        }

    def _log_budget(self, train_steps: ArrayLike) -> FloatArray:
        # A law without a budget term must not read t, which is 0 where it is unknown.
        if self.fits_budget or self.budget_exponent != 0.0:
            return np.log(np.asarray(train_steps, dtype=float) / self.ref_steps)
        return np.zeros(np.shape(train_steps))

    def _log_amplitude(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        exponent = (
            math.log(self.coef)
            + self.rank_exponent * np.log(lora_rank)
            - self.len_exponent * np.log(seq_len)
            + self.budget_exponent * self._log_budget(train_steps)
        )
        if self.drift is not None:
            exponent = exponent + self.drift.log_factor(lora_rank, seq_len, train_steps)
        return np.asarray(exponent, dtype=float)

    def _amplitude(
        self, lora_rank: ArrayLike, seq_len: ArrayLike, train_steps: ArrayLike
    ) -> FloatArray:
        exponent = self._log_amplitude(lora_rank, seq_len, train_steps)
        return np.asarray(np.exp(np.minimum(exponent, LARGEST_EXPONENT)), dtype=float)

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return delta_loss in nats per token, broadcast over the arguments."""
        return self._amplitude(lora_rank, seq_len, train_steps) + self.offset

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return d delta / d params, shape (N, P).

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
        jac = np.stack([*columns, a * log_t] if self.fits_budget else columns, axis=1)
        if self.drift is None:
            return jac
        terms = self.drift.terms(lora_rank, seq_len, train_steps).reshape(-1, len(self.drift.names))
        return np.concatenate([jac, a[:, None] * terms], axis=1)

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """Return r = ((delta - b) / (C l^-beta (t/t_ref)^gamma))^(1/alpha); with a drift, the rank
        at which the law rises through delta."""
        if (drift := self.drift) is not None:
            return self._rise(
                lambda u: (np.exp(drift.log_rank + u), seq_len, train_steps),
                drift.log_rank,
                (drift.low[0], drift.high[0]),
                delta_loss,
            )
        at_one = float(self._amplitude(1.0, seq_len, train_steps))
        return solve_power(at_one, self.rank_exponent, delta_loss - self.offset)

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """Return l = (C r^alpha (t/t_ref)^gamma / (delta - b))^(1/beta); with a drift as
        `invert_rank`."""
        if (drift := self.drift) is not None:
            shortest = self._rise(
                lambda v: (lora_rank, np.exp(drift.log_len - v), train_steps),
                -drift.log_len,
                (drift.low[1], drift.high[1]),
                delta_loss,
            )
        else:
            at_one = float(self._amplitude(lora_rank, 1.0, train_steps))
            shortest = solve_power(at_one, self.len_exponent, delta_loss - self.offset)
        return math.inf if shortest == 0 else 1.0 / shortest

    def invert_steps(self, lora_rank: float, seq_len: float, delta_loss: float) -> float:
        """Return t = t_ref ((delta - b) / (C r^alpha l^-beta))^(1/gamma); with a drift as
        `invert_rank`."""
        if (drift := self.drift) is not None and self.fits_budget:
            return self._rise(
                lambda s: (lora_rank, seq_len, np.exp(drift.log_steps + s)),
                drift.log_steps,
                (drift.low[2], drift.high[2]),
                delta_loss,
            )
        at_ref = float(self._amplitude(lora_rank, seq_len, self.ref_steps))
        return self.ref_steps * solve_power(at_ref, self.budget_exponent, delta_loss - self.offset)

    def _rise(
        self,
        at: Callable[[FloatArray], tuple[ArrayLike, ...]],
        middle: float,
        ends: tuple[float, float],
        delta_loss: float,
    ) -> float:
        """Return e^(middle + x) of the first x at which the law rises through delta_loss along
        `at(x)`.

        x: logarithm from the middle of the points, whose ends along the axis `ends` are.
        """
        need = delta_loss - self.offset
        if need <= 0:
            return 0.0
        x = rising_place(lambda x: self._log_amplitude(*at(x)), math.log(need), *ends)
        return 0.0 if x == -math.inf else bounded_exp(middle + x)

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the form."""
        return {"form": self.form, **asdict(self)}
