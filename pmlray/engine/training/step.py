"""One optimiser step of a pack: forward, token weights, backward, update.

Shapes: S slots of adapters, R rows, L supervised tokens of the longest row, T positions, D hidden
size. A captured step calls a stepper's `losses`, `backward` and `step` while it is captured, and a
few times more where it is checked, but not while it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.model.batches import MicroBatch, Row, micro_batches
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.token_stopping import TokenStopping
from pmlray.engine.training.token_weights import TokenWeights
from pmlray.memft import weighted_nll_per_row


class StepFound(NamedTuple):
    """Findings of a step before its update: each slot's loss (nats per token, NaN where a slot
    had no row) and norm of the gradient, (S,); of every micro-batch the loss of each token, (R,
    L)."""

    loss_S: Tensor
    norm_S: Tensor
    nll_RL: tuple[Tensor, ...]


class PackStep:
    """The step as a function of tensors: nothing in it waits for the device or goes by a value that
    is on it, and what it changes it changes in place, so that it can be captured as a graph."""

    def __init__(
        self,
        model: AdaptedModel,
        stepper: Stepper,
        optimizer: PackedAdamW,
        weights: TokenWeights,
        watched: TokenStopping,
    ) -> None:
        self._model, self._stepper, self._optimizer = model, stepper, optimizer
        self._weights, self._stopping = weights, watched

    def __call__(
        self,
        batches: Sequence[MicroBatch],
        keep_of: Callable[[MicroBatch], Tensor | None],
        rate_S: Tensor,
    ) -> StepFound:
        """Take a step over the micro-batches' rows at each slot's learning rate.

        keep_of: dropout's mask of a micro-batch, (T, D), None without dropout.
        """
        lora = self._model.lora
        weight_sum_S = torch.zeros(lora.A.shape[0], device=lora.A.device)
        loss_sum_S, count_S = torch.zeros_like(weight_sum_S), torch.zeros_like(weight_sum_S)
        found = []
        for batch in batches:
            losses = self._stepper.losses(batch, keep_of(batch))
            nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
            w_RL = self._weights(batch, nll_RL, wrong_RL)
            sum_R, weight_sum_R = weighted_nll_per_row(nll_RL, w_RL)
            self._stepper.backward(sum_R.sum())
            found.append(nll_RL.detach())
            self._stopping.keep_losses(batch, found[-1])
            at = lora.slots_of(batch.adapter_of_row_R)
            weight_sum_S.index_add_(0, at, weight_sum_R)
            loss_sum_S.index_add_(0, at, found[-1].sum(dim=1))
            count_S.index_add_(0, at, batch.mask_RL.sum(dim=1).float())
        self._optimizer.prepare(rate_S, weight_sum_S)
        self._stepper.step()
        return StepFound(loss_sum_S / count_S, self._optimizer.norm_N, tuple(found))

    def state(self) -> Mapping[str, Tensor]:
        """All tensors that a step changes, by name, themselves and not copies."""
        parts = {
            "adapters": self._model.lora,
            "optimizer": self._optimizer,
            "weights": self._weights,
            "watched": self._stopping,
        }
        return PackState.of_parts({name: part.get_state() for name, part in parts.items()}).tensors

    def drop_gradients(self) -> None:
        """Forget what a step that was broken off has left."""
        self._optimizer.zero_grad()


class Taken(NamedTuple):
    """A step that was taken: its micro-batches, what it found, and whether a graph was replayed."""

    batches: tuple[MicroBatch, ...]
    found: StepFound
    replayed: bool


class EagerStep:
    """Steps whose kernels are launched one by one, over rows that may be others every time."""

    def __init__(self, step: PackStep, dropout: Dropout) -> None:
        self._step, self._dropout = step, dropout
        self._rows: tuple[Row, ...] = ()
        self._batches: tuple[MicroBatch, ...] = ()

    def __call__(self, rows: tuple[Row, ...], rate_S: Tensor) -> Taken:
        """Take a step over the rows at each slot's learning rate."""
        if rows != self._rows:
            self._rows, self._batches = rows, micro_batches(rows)
        return Taken(self._batches, self._step(self._batches, self._dropout.mask, rate_S), False)


class Stepper(Protocol):
    """Runs forward, backward and update of an AdaptedModel (bare torch, DeepSpeed, ...)."""

    def losses(self, batch: MicroBatch, keep_TD: Tensor | None) -> TokenLosses:
        """Per-token losses with a graph."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a sum over tokens to those already there."""
        ...

    def step(self) -> None:
        """Update the adapters and clear their gradients."""
        ...

    def stepped(self, replayed: bool) -> None:
        """Told after every step of the pack; `replayed` where a captured graph took it and none of
        the other methods was called."""
        ...


class TorchStepper:
    """The bare loop, without any training framework."""

    def __init__(self, model: AdaptedModel, optimizer: PackedAdamW) -> None:
        self._model, self._optimizer = model, optimizer

    def losses(self, batch: MicroBatch, keep_TD: Tensor | None) -> TokenLosses:
        """See Stepper."""
        return self._model(batch, keep_TD)

    def backward(self, loss: Tensor) -> None:
        """See Stepper."""
        loss.backward()

    def step(self) -> None:
        """See Stepper."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def stepped(self, replayed: bool) -> None:
        """See Stepper; the bare loop counts nothing."""


class Dropout:
    """Masks that depend on an adapter's seed and own steps alone, whatever else is in the pack."""

    def __init__(self, members: Sequence[Member], share: float, device: torch.device) -> None:
        self._share = share
        self._generators = [torch.Generator(device).manual_seed(m.run.seed) for m in members]

    @property
    def is_off(self) -> bool:
        """True if nothing is ever dropped."""
        return not self._share

    def mask(self, batch: MicroBatch) -> Tensor | None:
        """Return the factors of a step's adapter output, (T, D); None without dropout."""
        return None if self.is_off else torch.cat(self.of_rows(batch.rows))

    def of_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """The next mask of each row, (T of the row, D)."""
        return [
            torch.empty(row.record.hidden_TD.shape, device=row.record.hidden_TD.device)
            .bernoulli_(1 - self._share, generator=self._generators[row.adapter])
            .div_(1 - self._share)
            for row in rows
        ]

    def copy(self, source: int, target: int) -> None:
        """Let an adapter go on drawing as another would."""
        self._generators[target].set_state(self._generators[source].get_state())

    def get_state(self) -> PackState:
        """The state that `set_state` continues from; a generator's state is on the host."""
        return PackState({f"{i}": g.get_state() for i, g in enumerate(self._generators)})

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        for i, generator in enumerate(self._generators):
            generator.set_state(state.tensors[f"{i}"].cpu())
