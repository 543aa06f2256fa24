"""LoRA adapters of mixed ranks and placements, packed.

Shapes: N adapters in S slots, R rows of a batch, T positions of all rows, P those of an adapter's
rows in a block, X a site's input width, D its output width, K the largest rank of a placement's
adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pmlray.config.adapters.placement import Placement, Site
from pmlray.engine.adapters.packed_factors import AdapterWeights, PlacedFactors, SiteShapes
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import Block, MicroBatch
from pmlray.engine.runtime.pack_state import PackState


class PackedLora(nn.Module):
    """N adapters at sites of a base; columns past an adapter's rank stay zero.

    The padding starts at zero, and a zero column of A and row of B give each other zero gradients,
    so no mask is needed in a step. Adapters of one placement share their tensors, and none has any
    at another's sites.

    Where not all adapters train at once, a placement has fewer slots than adapters: an adapter
    takes one when it begins, and can be read until another takes it.
    """

    def __init__(
        self,
        base: BaseModel,
        ranks: Sequence[int],
        seeds: Sequence[int],
        n_slots: int | None = None,
        placements: Sequence[Placement] | None = None,
        start: AdapterWeights | None = None,
    ) -> None:
        """Make untrained adapters.

        Args:
            base: the model with its sites.
            ranks, seeds: of each adapter.
            n_slots: most adapters that train at once; None: all.
            placements: of each adapter; None where the base has a single one.
            start: factors of the first columns of every adapter, in place of fresh ones; the
                columns beyond them are fresh, so that the output is that of these factors.
        """
        super().__init__()
        if placements is None:
            (only,) = base.placements
            placements = [only] * len(ranks)
        self.ranks, self._seeds = tuple(ranks), tuple(seeds)
        self._begin_with = {} if start is None else start
        members: dict[Placement, list[int]] = {}
        for n, placement in enumerate(placements):
            members.setdefault(placement, []).append(n)
        self._placed: list[PlacedFactors] = []
        first = 0
        for placement, own in members.items():
            slots = len(own) if n_slots is None else min(len(own), n_slots)
            own_ranks = [ranks[n] for n in own]
            self._placed.append(
                PlacedFactors(placement, base.site_shapes, own_ranks, first, slots, base.device)
            )
            first += slots
        self.factors = nn.ModuleList(group for placed in self._placed for group in placed.groups)
        kinds = list(members)
        self._kind_N = [kinds.index(placement) for placement in placements]
        self._columns = _columns(base.site_shapes)
        scales = [p.scale(rank) for p, rank in zip(placements, ranks, strict=True)]
        self._scale_N = (
            None if all(s == 1 for s in scales) else torch.tensor(scales, device=base.device)
        )
        # The adapter in each slot, and each adapter's slot; not registered, so no framework moves
        # them.
        self._holders: list[int | None] = [None] * first
        self._slot_N = torch.zeros(len(ranks), dtype=torch.int64, device=base.device)
        for placed, own in zip(self._placed, members.values(), strict=True):
            for slot, n in enumerate(own[: placed.slots], placed.first):
                self._start(n, slot)

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self._slot_N.device

    @property
    def n_slots(self) -> int:
        """Number of slots S."""
        return len(self._holders)

    @property
    def out_width(self) -> int:
        """Width of all sites' outputs side by side, in which dropout's masks are laid out."""
        return max(columns.stop for columns in self._columns.values())

    def out_columns(self, n: int) -> tuple[slice, ...]:
        """Return the columns of an adapter's own sites' outputs among those of all, in its order;
        empty where it has all of them."""
        own = self._placed[self._kind_N[n]].shapes
        return () if list(own) == list(self._columns) else tuple(self._columns[s] for s in own)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of each placement's adapters, as an optimizer takes them."""
        return [
            {"params": [p for group in placed.groups for p in group.parameters()]}
            for placed in self._placed
        ]

    def slot_of(self, n: int) -> int:
        """Return the slot of an adapter; ValueError when it has none."""
        return self._holders.index(n)

    def slots_of(self, adapter_R: Tensor) -> Tensor:
        """Return the slots of adapters, int64 (R,)."""
        return self._slot_N[adapter_R]

    def begin(self, n: int, inside: Collection[int]) -> int:
        """Put untrained adapter n into a slot held by none of those `inside`; return the slot."""
        if n in self._holders:
            return self.slot_of(n)
        held = self._placed[self._kind_N[n]].held
        slot = next(
            slot
            for slot, holder in enumerate(self._holders[held], held.start)
            if holder not in inside
        )
        self._start(n, slot)
        return slot

    def _start(self, n: int, slot: int) -> None:
        placed, rank = self._placed[self._kind_N[n]], self.ranks[n]
        placed.start(slot, rank, self._seeds[n], self._begin_with)
        self._holders[slot], self._slot_N[n] = n, slot

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState(
            {name: values.data for name, values in self.named_parameters()},
            {"holders": self._holders},
        )

    @torch.no_grad()
    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        for name, values in self.named_parameters():
            values.copy_(state.tensors[name])
        self._holders = list(state.facts["holders"])
        for slot, n in enumerate(self._holders):
            if n is not None:
                self._slot_N[n] = slot

    def on(self, batch: MicroBatch, keep_TW: Tensor | None) -> Deltas:
        """Return the adapters' outputs on a batch, for one forward pass.

        keep_TW: dropout's factors of the outputs, (T, out_width); None without dropout.
        """
        if keep_TW is None:
            keep = {}
        else:
            keep = {site: keep_TW[:, columns] for site, columns in self._columns.items()}
        factors: dict[int, _Factors] = {}
        blocks, row = [], 0
        for block in batch.blocks:
            for kind, part in self._by_kind(block):
                placed = self._placed[kind]
                if kind not in factors:
                    factors[kind] = placed.by_site()
                adapter_N = batch.adapter_of_row_R[row : row + part.rows : part.rows_of_each]
                # All slots in order need no gather: its copies would cost more than the products.
                whole = list(part.adapters) == self._holders[placed.held]
                blocks.append(
                    _AdaptersOfBlock(
                        factors[kind],
                        len(part.adapters),
                        part.rows * part.length,
                        None if whole else self.slots_of(adapter_N) - placed.first,
                        None if self._scale_N is None else self._scale_N[adapter_N][:, None, None],
                    )
                )
                row += part.rows
        return Deltas(blocks, keep)

    def weights(self, n: int) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (X, r) and B (r, D) of adapter n by its sites, detached, without padding."""
        return self._placed[self._kind_N[n]].weights(self.slot_of(n), self.ranks[n])

    def _by_kind(self, block: Block) -> list[tuple[int, Block]]:
        """Return a block's consecutive parts whose adapters share a placement, with its index."""
        if len(self._placed) == 1:
            return [(0, block)]
        return [
            (kind, replace(block, adapters=tuple(same)))
            for kind, same in groupby(block.adapters, key=self._kind_N.__getitem__)
        ]


_Factors = Mapping[Site, tuple[Tensor, Tensor]]


class _AdaptersOfBlock(NamedTuple):
    """Adapters of one placement in one block of a batch.

    `factors`: A (S, X, K) and B (S, K, D) of each of their sites, S the placement's slots. `n`,
    `positions`: number of adapters, and of positions of all their rows. `slot_N`: the adapters'
    slots among those, None for all slots in order. `scale`: factors of their products, (N, 1, 1),
    None where all are 1.
    """

    factors: _Factors
    n: int
    positions: int
    slot_N: Tensor | None
    scale: Tensor | None


class Deltas:
    """Outputs of a batch's adapters at their sites, in fp32, for one forward pass.

    keep: dropout's factors of each site's output, (T, D); empty without dropout.
    """

    def __init__(self, blocks: Sequence[_AdaptersOfBlock], keep: Mapping[Site, Tensor]) -> None:
        self._blocks, self._keep = blocks, keep
        self._alike = all(block.factors is blocks[0].factors for block in blocks)
        # Projections of one input follow each other: it is converted once.
        self._last: tuple[Tensor, list[Tensor]] | None = None

    def __call__(self, site: Site, x: Tensor) -> Tensor | None:
        """Return each position's adapter output, (..., D), for a site's input, (..., X).

        None where no adapter of the batch has the site.
        """
        found = [block.factors.get(site) for block in self._blocks]
        some = next((factors for factors in found if factors is not None), None)
        if some is None:
            return None
        out, dtype = some[1].shape[-1], some[0].dtype
        inputs = self._inputs(x, dtype)
        parts = []
        for i, (block, factors) in enumerate(zip(self._blocks, found, strict=True)):
            if factors is None:
                parts.append(x.new_zeros(block.positions, out, dtype=dtype))
                continue
            x_TX = inputs[i] = inputs[i].to(dtype)
            parts.append(_product(block, factors, x_TX))
        delta_TD = torch.cat(parts)
        if self._keep:
            delta_TD = delta_TD * self._keep[site]
        return delta_TD.view(*x.shape[:-1], -1)

    def _inputs(self, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return the input of each block's positions, (T, X), which the caller converts in place
        where adapters of other placements do not need it."""
        if self._last is None or self._last[0] is not x:
            x_TX = x.reshape(-1, x.shape[-1])
            if self._alike:
                x_TX = x_TX.to(dtype)
            self._last = x, list(x_TX.split([block.positions for block in self._blocks]))
        return self._last[1]


def _product(block: _AdaptersOfBlock, factors: tuple[Tensor, Tensor], x_TX: Tensor) -> Tensor:
    """Return the output of a block's adapters at one site, (T, D)."""
    a_SXK, b_SKD = factors
    slot_N = block.slot_N
    a_NXK, b_NKD = (a_SXK, b_SKD) if slot_N is None else (a_SXK[slot_N], b_SKD[slot_N])
    low_NPK = torch.bmm(x_TX.unflatten(0, (block.n, -1)), a_NXK)
    if block.scale is not None:
        low_NPK = low_NPK * block.scale
    return torch.bmm(low_NPK, b_NKD).flatten(0, 1)


def _columns(shapes: SiteShapes) -> dict[Site, slice]:
    """Return the columns of each site's output among those of all."""
    found: dict[Site, slice] = {}
    start = 0
    for site, (_, out) in shapes.items():
        found[site] = slice(start, start + out)
        start += out
    return found
