"""Who drives forward, backward and update of a pack: a framework, or nobody.

A captured step calls `losses`, `backward` and `step` while it is captured, and a few times more
where it is checked, but not while it is replayed.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.head import TokenLosses


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
