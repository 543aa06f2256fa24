"""One optimiser step of a pack: forward, token weights, backward, update.

Shapes: S slots of adapters, R rows, L supervised tokens of the longest row, T positions, W width of
all adapted sites' outputs together. With CUDA graphs a stepper's `losses`, `backward` and `step`
are called during capture and when a replay is checked, but not during a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.batches import MicroBatch, Row, micro_batches
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.token_stopping import TokenStopping
from pmlray.engine.training.token_weights import TokenWeights
from pmlray.memft import weighted_nll_per_row


class StepFound(NamedTuple):
    """Losses and gradient norms of a step, before its update.

    `loss_S`: each slot's mean loss, nats per supervised token, ends included, NaN where a slot had
    no row, (S,). `norm_S`: each slot's gradient norm, (S,). `nll_RL`: per micro-batch, the loss
    of each token, (R, L) nats.
    """

    loss_S: Tensor
    norm_S: Tensor
    nll_RL: tuple[Tensor, ...]


class PackStep:
    """An optimiser step as a function of tensors that can be captured as a graph.

    It never waits for the device, does not branch on values there, and updates its state in place.
    """

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

    @property
    def can_be_captured(self) -> bool:
        """False where the base's own layers may wait for the device."""
        return self._model.can_be_captured

    def __call__(
        self,
        batches: Sequence[MicroBatch],
        keep_of: Callable[[MicroBatch], Tensor | None],
        rate_S: Tensor,
    ) -> StepFound:
        """Take a step over the micro-batches' rows at each slot's learning rate.

        keep_of: returns a micro-batch's dropout mask, (T, W); None without dropout. rate_S: (S,).
        """
        lora = self._model.lora
        weight_sum_S = torch.zeros(lora.n_slots, device=lora.device)
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
        """Return all tensors that a step changes, by name; not copies."""
        parts = {
            "adapters": self._model.lora,
            "optimizer": self._optimizer,
            "weights": self._weights,
            "watched": self._stopping,
        }
        return PackState.of_parts({name: part.get_state() for name, part in parts.items()}).tensors

    def drop_gradients(self) -> None:
        """Clear the gradients that an interrupted step has left."""
        self._optimizer.zero_grad()


class Taken(NamedTuple):
    """A completed step: its micro-batches, its losses, and whether a graph was replayed."""

    batches: tuple[MicroBatch, ...]
    found: StepFound
    replayed: bool


class EagerStep:
    """Steps whose kernels are launched one by one, over rows that may change every time."""

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
    """Driver of an AdaptedModel's forward, backward and update (bare torch, DeepSpeed, ...).

    A step calls `losses` and `backward` for each of its micro-batches, then `step`, then `stepped`.
    """

    def losses(self, batch: MicroBatch, keep_TW: Tensor | None) -> TokenLosses:
        """Run the forward pass of a micro-batch.

        Args:
            batch: rows of many adapters, laid end to end.
            keep_TW: dropout's factors of the adapters' outputs, (T, W); None without dropout.

        Returns:
            Loss (nats, fp32) and argmax error of each supervised token, (N,), with the autograd
            graph.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to those already accumulated.

        Args:
            loss: weighted sum over tokens, nats, a scalar.
        """
        ...

    def step(self) -> None:
        """Update the adapters and clear their gradients."""
        ...

    def stepped(self, replayed: bool) -> None:
        """Count a step of the pack; called once after each.

        Args:
            replayed: True where a captured graph took the step, so that none of the other methods
                was called unless the replay was checked.
        """
        ...


class TorchStepper:
    """Stepper in bare torch, without a training framework."""

    def __init__(self, model: AdaptedModel, optimizer: PackedAdamW) -> None:
        self._model, self._optimizer = model, optimizer

    def losses(self, batch: MicroBatch, keep_TW: Tensor | None) -> TokenLosses:
        """See Stepper."""
        return self._model(batch, keep_TW)

    def backward(self, loss: Tensor) -> None:
        """See Stepper."""
        loss.backward()

    def step(self) -> None:
        """See Stepper."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def stepped(self, replayed: bool) -> None:
        """See Stepper; does nothing."""


class Dropout:
    """Dropout masks that depend only on an adapter's seed and own steps, not on its pack."""

    def __init__(self, members: Sequence[Member], share: float, lora: PackedLora) -> None:
        self._share, self._lora = share, lora
        self._generators = [torch.Generator(lora.device).manual_seed(m.run.seed) for m in members]

    @property
    def width(self) -> int:
        """Number of factors W of one position."""
        return self._lora.out_width

    @property
    def is_off(self) -> bool:
        """True if nothing is ever dropped."""
        return not self._share

    def mask(self, batch: MicroBatch) -> Tensor | None:
        """Return the factors of a micro-batch's adapter outputs, (T, W); None without dropout."""
        return None if self.is_off else torch.cat(self.of_rows(batch.rows))

    def of_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the next mask of each row, (T of the row, W)."""
        return [self._of_row(row) for row in rows]

    def _of_row(self, row: Row) -> Tensor:
        columns, device = self._lora.out_columns(row.adapter), row.record.hidden_TD.device
        width = sum(own.stop - own.start for own in columns) if columns else self.width
        drawn = (
            torch.empty(row.length, width, device=device)
            .bernoulli_(1 - self._share, generator=self._generators[row.adapter])
            .div_(1 - self._share)
        )
        if not columns:
            return drawn
        # Elsewhere the adapter's output is zero.
        whole = drawn.new_ones(row.length, self.width)
        start = 0
        for own in columns:
            end = start + own.stop - own.start
            whole[:, own], start = drawn[:, start:end], end
        return whole

    def copy(self, source: int, target: int) -> None:
        """Copy the generator state of one adapter to another."""
        self._generators[target].set_state(self._generators[source].get_state())

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores; a generator's state is on the host."""
        return PackState({f"{i}": g.get_state() for i, g in enumerate(self._generators)})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        for i, generator in enumerate(self._generators):
            generator.set_state(state.tensors[f"{i}"].cpu())
