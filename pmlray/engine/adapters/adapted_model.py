"""The trainable part of a pack as one torch module: adapters, frozen suffix, frozen head."""

from __future__ import annotations

from torch import Tensor, nn

from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.head import TokenLosses, token_losses


class AdaptedModel(nn.Module):
    """Module that computes per-token losses of a micro-batch under its rows' adapters.

    Only the adapters are registered: the frozen base is not in `parameters()`, so that no training
    framework copies, broadcasts or converts it.
    """

    def __init__(self, base: BaseModel, lora: PackedLora) -> None:
        super().__init__()
        self.lora = lora
        self._base = base

    @property
    def head_work(self) -> float:
        """Work of scoring one token relative to one position's suffix pass, by weight counts."""
        suffix = self._base.model.model.layers[self._base.probe.layer + 1 :]
        weights = sum(p.numel() for layer in suffix for p in layer.parameters())
        # No suffix follows an adapter at the last layer: avoid a division by zero.
        return self._base.head_weight.numel() / max(1, weights)

    def forward(self, batch: MicroBatch, keep_TD: Tensor | None = None) -> TokenLosses:
        """Return the losses of the batch's N supervised tokens.

        keep_TD: dropout mask of the adapter output, already scaled, (T, D); None without dropout.
        """
        delta_TD = self.lora.delta(batch)
        if keep_TD is not None:
            delta_TD = delta_TD * keep_TD
        adapted_TD = batch.hidden_TD + delta_TD.to(batch.hidden_TD.dtype)
        final_TD = self._base.run_suffix(adapted_TD, batch.positions_T, batch.groups)
        return token_losses(final_TD[batch.predict_N], self._base.head_weight, batch.targets_N)
