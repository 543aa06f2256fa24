"""The trainable part of a pack as one torch module: adapters, frozen suffix, frozen head."""

from __future__ import annotations

from torch import Tensor, nn

from pmlray.engine.base_model import BaseModel
from pmlray.engine.batches import MicroBatch
from pmlray.engine.head import TokenLosses, token_losses
from pmlray.engine.packed_lora import PackedLora


class AdaptedModel(nn.Module):
    """Per-token losses of a micro-batch under its rows' adapters.

    Only the adapters are registered: the frozen base stays out of `parameters()`, so that no
    training framework copies, broadcasts or converts it.
    """

    def __init__(self, base: BaseModel, lora: PackedLora) -> None:
        super().__init__()
        self.lora = lora
        self._base = base

    def forward(self, batch: MicroBatch, keep_RTD: Tensor | None = None) -> TokenLosses:
        """Losses of the batch's N supervised tokens.

        keep_RTD: dropout's mask of the adapter output, already scaled; None outside training.
        """
        delta_RTD = self.lora.delta(batch.adapter_in_RTX, batch.adapter_of_row_R)
        if keep_RTD is not None:
            delta_RTD = delta_RTD * keep_RTD
        adapted_RTD = batch.hidden_RTD + delta_RTD.to(batch.hidden_RTD.dtype)
        final_RTD = self._base.run_suffix(adapted_RTD)
        predicting_ND = final_RTD.flatten(0, 1)[batch.predict_N]
        return token_losses(predicting_ND, self._base.head_weight, batch.targets_N)
