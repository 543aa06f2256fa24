"""A base of Llama's shape, split below the lowest adapted layer.

What lies below is the prefix: no adapter changes it, so it runs once per text. Where every adapter
that begins there has one site whose output is added to its layer's own (the paper's probe, or one
`down_proj`), that layer too is of the prefix, which then gives the sites' inputs as well.

Shapes: B rows, T positions, D hidden size, X width of the kept sites' inputs side by side.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pmlray.config.adapters.placement import DOWN_PROJ, Site, kept_sites
from pmlray.config.bases.families import FAST, Family, window_of
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
    def kept_sites(self) -> tuple[Site, ...]:
        """See BaseModel."""
        kept = kept_sites(self.placements)
        if not self.family.adds_plainly and any(site.module == DOWN_PROJ for site in kept):
            return ()
        return kept

    @property
    def first_trained_layer(self) -> int:
        """Number of decoder layers of the prefix."""
        return min(p.layers[0] for p in self.placements) + bool(self.kept_sites)

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
        body, length = self.model.model, ids_BT.shape[1]
        embed, *layers = self.prefix
        hidden = embed(ids_BT)
        # Granite's.
        if (multiplier := getattr(body, "embedding_multiplier", 1)) != 1:
            hidden = hidden * multiplier
        positions = torch.arange(length, device=ids_BT.device)[None]
        rotary = body.rotary_emb(hidden, position_ids=positions)
        seen = dict[Site, Tensor]()
        with ExitStack() as stack:
            for site in self.kept_sites:
                hook = self.module_at(site).register_forward_pre_hook(
                    lambda _module, args, site=site: seen.update({site: args[0]})
                )
                stack.callback(hook.remove)
            for n, layer in enumerate(layers):
                window = self.window_of(n)
                # None: attention is causal over the whole row.
                mask = None
                if window is not None and length > window:
                    mask = ~future_mask(length, window, ids_BT.device)[None, None]
                hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        kept = [seen[site] for site in self.kept_sites]
        return LayerInputs(hidden, torch.cat(kept, -1) if kept else hidden[..., :0])

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
        delta, hidden_TD = adapters(batch, slice(None)), batch.hidden_TD
        if kept := self.kept_sites:
            widths = [self.site_shapes[site][0] for site in kept]
            for site, x_TX in zip(kept, batch.adapter_in_TX.split(widths, 1), strict=True):
                if (added := delta(site, x_TX)) is not None:
                    hidden_TD = hidden_TD + added.to(hidden_TD.dtype)
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
