"""The trainable part of a pack as one torch module: adapters, frozen suffix, frozen head."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pmlray.config.adapters.placement import Site
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.model.sites import Delta


class AdaptedModel(nn.Module):
    """Module that computes per-token losses of a micro-batch under its rows' adapters.

    Only the adapters are registered: the frozen base is not in `parameters()`, so that no training
    framework copies, broadcasts or converts it.
    """

    def __init__(self, base: BaseModel, lora: PackedLora) -> None:
        super().__init__()
        self.lora = lora
        self._base = base
        self._bare = False

    @property
    def can_be_captured(self) -> bool:
        """Whether a step's kernels can be recorded as a graph."""
        return self._base.can_be_captured

    @property
    def head_work(self) -> float:
        """Work of scoring one token relative to one position's suffix pass, by weight counts."""
        weights = sum(p.numel() for layer in self._base.suffix_layers for p in layer.parameters())
        # No suffix follows an adapter at the last layer: avoid a division by zero.
        return self._base.head_weight.numel() / max(1, weights)

    def forward(self, batch: MicroBatch, keep_TW: Tensor | None = None) -> TokenLosses:
        """Return the losses of the batch's N supervised tokens.

        keep_TW: dropout mask of the adapters' outputs, already scaled, (T, W); None without
        dropout.
        """

        def adapters(part: MicroBatch, where: slice) -> Delta:
            if self._bare:
                return self._nothing
            return self.lora.on(part, None if keep_TW is None else keep_TW[where])

        return self._base.losses(batch, adapters)

    @contextmanager
    def without_adapters(self) -> Generator[None]:
        """Compute the losses of the bare base in this context."""
        self._bare = True
        try:
            yield
        finally:
            self._bare = False

    def _nothing(self, site: Site, x: Tensor) -> Tensor:
        """Return what an adapter adds whose B is 0."""
        out = self._base.site_shapes[site][1]
        return torch.zeros(*x.shape[:-1], out, device=x.device)
