"""Who drives forward, backward and update of a pack: a framework, or nobody."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.batches import MicroBatch
from pmlray.engine.head import TokenLosses
from pmlray.engine.optimizer import PackedAdamW


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
