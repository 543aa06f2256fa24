"""A base of Llama's shape, split below the lowest adapted layer.

What lies below is the prefix: no adapter changes it, so it runs once per text. Where an adapter has
one site whose output is added to its layer's own (the paper's probe, or one `down_proj`), that
layer too is of the prefix, which then gives the site's input as well.

Shapes: B rows, T positions, D hidden size, X width of the kept site's input.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pmlray.config.bases.families import FAST, Family, window_of
from pmlray.config.placement import DOWN_PROJ, Site
from pmlray.engine.kernels.row_attention import RowGroups, future_mask
from pmlray.engine.model.frozen_base import Adapters, BaseModel, LayerInputs
from pmlray.engine.model.head import TokenLosses, token_losses

if TYPE_CHECKING:
    from pmlray.engine.model.batches import MicroBatch


@dataclass(frozen=True)
class FastBase(BaseModel):
    """A base whose prefix is computed once, and whose suffix runs on rows laid end to end."""

    @property
    def family(self) -> Family:
        """How its layers differ from Llama's."""
        return FAST[type(self.model).__name__]

    @property
    def kept_site(self) -> Site | None:
        """See BaseModel."""
        kept = self.placement.kept_site
        if kept is not None and kept.module == DOWN_PROJ and not self.family.adds_plainly:
            return None
        return kept

    @property
    def first_trained_layer(self) -> int:
        """Number of decoder layers of the prefix."""
        return self.placement.layers[0] + (self.kept_site is not None)

    @property
    def prefix(self) -> tuple[Any, ...]:
        """The embeddings and the layers of the prefix."""
        return (self.model.model.embed_tokens, *self.layers[: self.first_trained_layer])

    @property
    def suffix_layers(self) -> Any:
        """The layers above the prefix."""
        return self.layers[self.first_trained_layer :]

    @property
    def can_be_captured(self) -> bool:
        """See BaseModel."""
        return True

    @torch.no_grad()
    def run_prefix(self, ids_BT: Tensor) -> LayerInputs:
        """Run the prefix on right-padded token ids, (B, T).

        Attention is causal, so padding changes no real position.
        """
        body, kept, length = self.model.model, self.kept_site, ids_BT.shape[1]
        embed, *layers = self.prefix
        hidden = embed(ids_BT)
        # Granite's.
        if (multiplier := getattr(body, "embedding_multiplier", 1)) != 1:
            hidden = hidden * multiplier
        positions = torch.arange(length, device=ids_BT.device)[None]
        rotary = body.rotary_emb(hidden, position_ids=positions)
        seen: list[Tensor] = []
        with ExitStack() as stack:
            if kept is not None:
                hook = self.module_at(kept).register_forward_pre_hook(
                    lambda _module, args: seen.append(args[0])
                )
                stack.callback(hook.remove)
            for n, layer in enumerate(layers):
                window = self.window_of(n)
                # None: attention is causal over the whole row.
                mask = None
                if window is not None and length > window:
                    mask = ~future_mask(length, window, ids_BT.device)[None, None]
                hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return LayerInputs(hidden, seen[0] if seen else hidden[..., :0])

    def run_suffix(self, hidden_TD: Tensor, positions_T: Tensor, groups: RowGroups) -> Tensor:
        """Run the suffix and the final norm on the prefix's (adapted) output; return (T, D).

        The T positions are rows laid end to end; groups: their (rows, length), in order.
        """
        body = self.model.model
        hidden = hidden_TD[None]
        rotary = body.rotary_emb(hidden, position_ids=positions_T[None])
        for layer in self.suffix_layers:
            hidden = layer(
                hidden, attention_mask=None, position_embeddings=rotary, row_groups=groups
            )
        return body.norm(hidden)[0]

    def losses(self, batch: MicroBatch, adapters: Adapters) -> TokenLosses:
        """See BaseModel."""
        delta, kept, hidden_TD = adapters(batch, slice(None)), self.kept_site, batch.hidden_TD
        if kept is not None:
            hidden_TD = hidden_TD + delta(kept, batch.adapter_in_TX).to(hidden_TD.dtype)
            final_TD = self.run_suffix(hidden_TD, batch.positions_T, batch.groups)
        else:
            with self.deltas.of(delta):
                final_TD = self.run_suffix(hidden_TD, batch.positions_T, batch.groups)
        final_ND = final_TD[batch.predict_N]
        # Granite's; its logits are linear in what the head reads.
        if (scaling := getattr(self.model.config, "logits_scaling", 1)) != 1:
            final_ND = final_ND / scaling
        return token_losses(final_ND, self.head_weight, batch.targets_N)

    def window_of(self, layer: int) -> int | None:
        """Return the number of positions that a layer's attention reaches back; None for all."""
        return window_of(self.family, self.model.config, layer)
