"""A base of any family, run by its own layers, masks, positions and head.

No activations are cached: a record's cache is its token ids. Rows of equal length run together,
without padding, so that every row is computed as the model computes it alone.

Shapes: R rows, L positions of each, T positions of all rows, N supervised tokens, D hidden size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pmlray.config.adapters.placement import Site
from pmlray.engine.model.frozen_base import Adapters, BaseModel, LayerInputs
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.model.own_head import own_head_losses
from pmlray.errors import ModelError

if TYPE_CHECKING:
    from pmlray.engine.model.batches import MicroBatch

# Rows and positions of the text by which a base is checked when it is loaded.
CHECKED = (2, 6)
# Largest differences of logits, relative to their norm, that rounding explains: of the same
# positions computed twice, and of fewer at once, where a token may be routed to another expert.
SAME, ROUTED = 0.05, 0.3


@dataclass(frozen=True)
class GeneralBase(BaseModel):
    """A base whose whole forward is the model's own."""

    @property
    def kept_sites(self) -> tuple[Site, ...]:
        """None: whether a site's output reaches its layer's unchanged differs between families."""
        return ()

    @property
    def prefix(self) -> tuple[Any, ...]:
        """No modules: what is cached are token ids."""
        return ()

    @property
    def suffix_layers(self) -> Any:
        """All decoder layers."""
        return self.layers

    @torch.no_grad()
    def run_prefix(self, ids_BT: Tensor) -> LayerInputs:
        """Return the token ids, (B, T, 1)."""
        ids_BT1 = ids_BT[..., None]
        return LayerInputs(ids_BT1, ids_BT1[..., :0])

    def losses(self, batch: MicroBatch, adapters: Adapters) -> TokenLosses:
        """See BaseModel."""
        final = []
        for part, where in batch.by_length():
            ids_RL = batch.hidden_TD[where, 0].view(-1, part.blocks[0].length)
            with self.deltas.of(adapters(part, where)):
                final.append(self.final_hidden(ids_RL).flatten(0, 1))
        hidden_ND = torch.cat(final)[batch.predict_N]
        return own_head_losses(self.logits, hidden_ND, batch.targets_N, len(self.head_weight))

    def final_hidden(self, ids_RL: Tensor) -> Tensor:
        """Return what the head reads, (R, L, D)."""
        return self.model.get_decoder()(input_ids=ids_RL, use_cache=False).last_hidden_state

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits that the model's own forward makes of final hidden states, (N, V).

        It runs whole, but for its decoder, which returns these; so whatever the family does to its
        logits is done.
        """
        ids_1N = torch.zeros(1, len(hidden_ND), dtype=torch.int64, device=hidden_ND.device)
        with _returning(self.model.get_decoder(), hidden_ND[None]):
            return self.model(input_ids=ids_1N, use_cache=False).logits[0]

    @torch.no_grad()
    def check(self, sites: Sequence[Site], where: str) -> None:
        """Check that the model can be run this way.

        Its hidden states and logits are those of its own forward, no position attends to later
        ones, and each site is called with one input a position.

        Raises:
            ModelError: what of these does not hold.
        """
        rows, length = CHECKED
        name = type(self.model).__name__
        if self.model.get_decoder() is self.model:
            raise ModelError(f"{where}: {name} has no decoder apart from its head")
        vocab = self.model.get_input_embeddings().weight.shape[0]
        drawn = torch.randint(vocab, CHECKED, generator=torch.Generator().manual_seed(0))
        ids_RL, called = drawn.to(self.device), set[Site]()

        def delta(site: Site, x: Tensor) -> Tensor:
            if [size for size in x.shape[:-1] if size != 1] in ([rows, length], [rows * length]):
                called.add(site)
            return x.new_zeros(*x.shape[:-1], self.site_shapes[site][1])

        with self.deltas.of(delta):
            own = self.model(input_ids=ids_RL, use_cache=False).logits
        hidden = self.final_hidden(ids_RL)
        mine = torch.stack([self.logits(row) for row in hidden])
        cut = self.model(input_ids=ids_RL[:, : length // 2], use_cache=False).logits
        if not _off(mine, own) <= SAME:
            raise ModelError(
                f"{where}: {name} does more between its layers and its logits than pmlray follows"
            )
        if not _off(cut, own[:, : length // 2]) <= ROUTED:
            raise ModelError(
                f"{where}: {name} attends to later tokens too; pmlray needs a causal language model"
            )
        if lacking := [site for site in sites if site not in called]:
            raise ModelError(
                f"{where}: {name} does not call {lacking[0].module} of layer {lacking[0].layer}"
                " once a position, so that an adapter there would not be what it seems"
            )


def _off(found: Tensor, expected: Tensor) -> float:
    """Return the norm of a difference over that of what is expected; NaN where either has one."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@contextmanager
def _returning(decoder: Any, hidden_1ND: Tensor) -> Generator[None]:
    """Let a decoder return these final hidden states, whatever it is called with."""
    output = _Output(last_hidden_state=hidden_1ND)
    decoder.forward = lambda *_args, **_options: output
    try:
        yield
    finally:
        del decoder.forward


class _Output(dict[str, Any]):
    """A decoder's output with nothing but hidden states, for all ways in which it is read."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return (self["last_hidden_state"],)[key] if not isinstance(key, str) else self.get(key)
