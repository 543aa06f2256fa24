"""Power law whose rank exponent falls at a rank inside the grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from pmlray.law.data import FloatArray
from pmlray.law.forms.drift import Drift
from pmlray.law.forms.power import PowerLaw
from pmlray.law.forms.protocol import Form

# Sharpness of the break, 1/f of the source: fixed, because a handful of ranks around the break
# does not identify it. At 4 the change is over within a factor of 2 in rank.
BREAK_SHARPNESS = 4.0
LARGEST_RANK = 2.0**40
# Ranks at which a law with a drift is evaluated, since it may rise and fall several times.
N_RANKS = 1281


def log_bend(log_rank_over_break: FloatArray, drop: FloatArray | float) -> tuple[FloatArray, ...]:
    """Return log (1 + (r/r_b)^s)^(-drop/s), the log bend, with derivatives by drop and log r_b.

    With y = log(r/r_b) and q = e^(s y) / (1 + e^(s y)): log bend = -(drop/s) log(1 + e^(s y)),
    by drop -(1/s) log(1 + e^(s y)), by log r_b drop q.
    """
    scaled = BREAK_SHARPNESS * log_rank_over_break
    soft = np.logaddexp(0.0, scaled) / BREAK_SHARPNESS
    return -drop * soft, -soft, drop * expit(scaled)


@dataclass(frozen=True, slots=True)
class BrokenLaw:
    """delta_loss = C r^alpha (1 + (r/r_b)^s)^(-drop/s) l^-beta (t/t_ref)^gamma + b, s = 4.

    A smoothly broken power law in rank (Broken Neural Scaling Laws, arXiv 2210.14891, one break):
    its exponent is alpha far below the rank r_b and alpha - drop far above it. Units: delta_loss
    and b nats per token, exponents none, r_b a rank. `params` are those of the power law, then
    drop >= 0 and log r_b. `base_loss` arguments are ignored: this form has no ceiling.
    """

    coef: float
    rank_exponent: float
    len_exponent: float
    offset: float
    rank_drop: float
    break_rank: float
    budget_exponent: float = 0.0
    ref_steps: float = 1.0
    fits_budget: bool = False
    drift: Drift | None = None

    @property
    def form(self) -> Form:
        """`broken`."""
        return "broken"

    @property
    def unbroken(self) -> PowerLaw:
        """Law far below the break."""
        return PowerLaw(
            self.coef,
            self.rank_exponent,
            self.len_exponent,
            self.offset,
            self.budget_exponent,
            self.ref_steps,
            self.fits_budget,
            self.drift,
        )

    @property
    def param_names(self) -> tuple[str, ...]:
        """log_coef, rank_exponent, len_exponent, offset[, budget_exponent], rank_drop,
        log_break_rank."""
        return (*self.unbroken.param_names, "rank_drop", "log_break_rank")

    @property
    def params(self) -> FloatArray:
        """Free parameters in the order of `param_names`."""
        return np.append(self.unbroken.params, [self.rank_drop, math.log(self.break_rank)])

    def with_params(self, params: ArrayLike) -> BrokenLaw:
        """Return the same law with other free parameters, shape (P,)."""
        values = np.asarray(params, dtype=float)
        law = self.unbroken.with_params(values[:-2])
        return replace(
            self,
            **law.free_fields(),
            rank_drop=float(values[-2]),
            break_rank=math.exp(values[-1]),
        )

    def bend(self, lora_rank: ArrayLike) -> tuple[FloatArray, ...]:
        """Return `log_bend` at a rank."""
        return log_bend(
            np.log(np.asarray(lora_rank, dtype=float) / self.break_rank), self.rank_drop
        )

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return delta_loss in nats per token, broadcast over the arguments."""
        rise = self.unbroken.predict(lora_rank, seq_len, train_steps) - self.offset
        return rise * np.exp(self.bend(lora_rank)[0]) + self.offset

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return d delta / d params, shape (N, P): the unbroken law's amplitude times the bend,
        whose log derivatives `log_bend` gives."""
        r, length, t = (
            np.asarray(x, dtype=float).ravel()
            for x in np.broadcast_arrays(lora_rank, seq_len, train_steps)
        )
        log_bent, by_drop, by_log_break = self.bend(r)
        bend = np.exp(log_bent)
        amplitude = (self.unbroken.predict(r, length, t) - self.offset) * bend
        jac = self.unbroken.jacobian(r, length, t)
        scaled = jac * bend[:, None]
        # The offset is added after the bend.
        scaled[:, 3] = jac[:, 3]
        return np.column_stack([scaled, amplitude * by_drop, amplitude * by_log_break])

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """Return the smallest rank that reaches delta_loss; 0 when any does, inf when none does.

        Where drop > alpha delta_loss falls again far above the break; the rank below it is meant.
        With a drift the place where it first rises through delta_loss.
        """
        need = delta_loss - self.offset
        if need <= 0:
            return 0.0
        if self.drift is not None:
            ranks = np.geomspace(1.0 / LARGEST_RANK, LARGEST_RANK, N_RANKS)
            reached = self.predict(ranks, seq_len, train_steps) >= delta_loss
            rises = np.flatnonzero(~reached[:-1] & reached[1:])
            if not rises.size:
                return 0.0 if reached.all() else math.inf
            return _bisect(
                lambda r: float(self.predict(r, seq_len, train_steps)),
                delta_loss,
                float(ranks[rises[0] + 1]),
                float(ranks[rises[0]]),
            )
        peak = LARGEST_RANK
        if self.rank_drop > self.rank_exponent:
            # d log a / d log r = alpha - drop q = 0 at q = alpha / drop.
            share = self.rank_exponent / self.rank_drop
            peak = self.break_rank * (share / (1.0 - share)) ** (1.0 / BREAK_SHARPNESS)
        return _bisect(lambda r: float(self.predict(r, seq_len, train_steps)), delta_loss, peak)

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """Invert as the power law, with the amplitude that the bend leaves at this rank."""
        return self._at_rank(lora_rank).invert_len(lora_rank, train_steps, delta_loss)

    def invert_steps(self, lora_rank: float, seq_len: float, delta_loss: float) -> float:
        """Invert as the power law, with the amplitude that the bend leaves at this rank."""
        return self._at_rank(lora_rank).invert_steps(lora_rank, seq_len, delta_loss)

    def _at_rank(self, lora_rank: float) -> PowerLaw:
        return replace(self.unbroken, coef=self.coef * math.exp(float(self.bend(lora_rank)[0])))

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the form."""
        return {"form": self.form, **asdict(self)}


def _bisect(
    rising: Callable[[float], float], wanted: float, high: float, low: float = 1.0 / LARGEST_RANK
) -> float:
    if rising(low) >= wanted:
        return 0.0
    if high <= low or rising(high) < wanted:
        return math.inf
    while (middle := math.sqrt(low * high)) not in (low, high):
        low, high = (low, middle) if rising(middle) >= wanted else (middle, high)
    return high
