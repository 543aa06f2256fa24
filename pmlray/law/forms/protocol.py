"""Interface of every form of the law."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self

from numpy.typing import ArrayLike

from pmlray.law.data import FloatArray
from pmlray.law.forms.drift import Drift

Form = Literal["power", "ceiling", "exponential_ceiling", "broken"]


class Law(Protocol):
    """A fitted law: delta_loss (nats per supervised token) of rank r, length l and steps t."""

    @property
    def form(self) -> Form:
        """Name of the form."""
        ...

    @property
    def coef(self) -> float:
        """C > 0."""
        ...

    @property
    def rank_exponent(self) -> float:
        """alpha >= 0."""
        ...

    @property
    def len_exponent(self) -> float:
        """beta >= 0; the law holds l ** -beta."""
        ...

    @property
    def offset(self) -> float:
        """b (power) or u (ceiling), nats per token."""
        ...

    @property
    def budget_exponent(self) -> float:
        """gamma; 0 where the budget was not varied."""
        ...

    @property
    def ref_steps(self) -> float:
        """t_ref, optimiser steps."""
        ...

    @property
    def fits_budget(self) -> bool:
        """True if gamma is a free parameter."""
        ...

    @property
    def drift(self) -> Drift | None:
        """Change of the exponents away from the middle of the points; None where there is none."""
        ...

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the free parameters, in the order of `params`."""
        ...

    @property
    def params(self) -> FloatArray:
        """Free parameters, shape (P,); positive ones as their logarithm."""
        ...

    def with_params(self, params: ArrayLike) -> Self:
        """Return the same law with other free parameters, shape (P,)."""
        ...

    def predict(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return delta_loss, broadcast; `base_loss`, where given, replaces the law's own if it has
        one."""
        ...

    def jacobian(
        self,
        lora_rank: ArrayLike,
        seq_len: ArrayLike,
        train_steps: ArrayLike,
        base_loss: ArrayLike | None = None,
    ) -> FloatArray:
        """Return d predict / d params, shape (N, P), the arguments broadcast and flattened."""
        ...

    def invert_rank(self, seq_len: float, train_steps: float, delta_loss: float) -> float:
        """Return the rank that reaches delta_loss; 0 when any does, inf when none does."""
        ...

    def invert_len(self, lora_rank: float, train_steps: float, delta_loss: float) -> float:
        """Return the longest l that reaches delta_loss; inf when any does, 0 when none does."""
        ...

    def invert_steps(self, lora_rank: float, seq_len: float, delta_loss: float) -> float:
        """Return the optimiser steps that reach delta_loss; 0 when any do, inf when none do."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return all fields and the form; `law_from_json` reads them back."""
        ...
