"""LoRA adapters of mixed ranks, packed: for each kind of module one pair of tensors.

Shapes: N adapters in S slots, J layers of one module, R rows of a batch, T positions of all rows, P
those of an adapter's rows in a block, X a site's input width, D its output width, K the largest
rank of the pack.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pmlray.config.placement import MLP_BLOCK, Site
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.runtime.pack_state import PackState

# A (X, r) and B (r, D) at each site of an adapter.
AdapterWeights = Mapping[Site, tuple[Tensor, Tensor]]
SiteShapes = Mapping[Site, tuple[int, int]]


def initial_As(shapes: SiteShapes, lora_rank: int, seed: int) -> dict[Site, Tensor]:
    """Return the initial A of each site of one adapter, (X, r), drawn on the CPU from its seed.

    Those of the paper's block follow its code, U(-1/sqrt(r), 1/sqrt(r)) (authors' code of arXiv
    2605.30260); all others follow PEFT, U(-1/sqrt(X), 1/sqrt(X)). B starts at 0 in both.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Site, Tensor] = {}
    for site, (width, _) in shapes.items():
        bound = lora_rank**-0.5 if site.module == MLP_BLOCK else width**-0.5
        drawn[site] = torch.empty(width, lora_rank).uniform_(-bound, bound, generator=generator)
    return drawn


class PackedFactors(nn.Module):
    """Factors of N adapters at the sites of one module: A (S, J, X, K) and B (S, J, K, D)."""

    def __init__(
        self, slots: int, sites: int, shape: tuple[int, int], rank: int, device: torch.device
    ) -> None:
        super().__init__()
        width, out = shape
        self.A = nn.Parameter(torch.zeros(slots, sites, width, rank, device=device))
        self.B = nn.Parameter(torch.zeros(slots, sites, rank, out, device=device))

    def by_site(self) -> list[tuple[Tensor, Tensor]]:
        """Return A (S, X, K) and B (S, K, D) of each site.

        All sites in one call: the gradient of a single one taken from its stack would be as large
        as the stack.
        """
        if self.A.shape[1] == 1:
            return [(self.A.squeeze(1), self.B.squeeze(1))]
        return list(zip(self.A.unbind(1), self.B.unbind(1), strict=True))


class PackedLora(nn.Module):
    """N adapters at the sites of a base; columns past an adapter's rank stay zero.

    The padding starts at zero, and a zero column of A and row of B give each other zero gradients,
    so no mask is needed in a step.

    Where not all adapters train at once, the tensors have S < N slots: an adapter takes one when it
    begins, and can be read until another takes it.

    start: factors of the first columns of every adapter, in place of fresh ones; the columns beyond
    them are fresh, so that the output is that of these factors.
    """

    def __init__(
        self,
        base: BaseModel,
        ranks: Sequence[int],
        seeds: Sequence[int],
        n_slots: int | None = None,
        start: AdapterWeights | None = None,
    ) -> None:
        super().__init__()
        self.ranks, self._seeds = tuple(ranks), tuple(seeds)
        self._begin_with = {} if start is None else start
        self._shapes, placement = base.site_shapes, base.placement
        slots = len(ranks) if n_slots is None else n_slots
        groups: dict[tuple[str, tuple[int, int]], list[Site]] = {}
        for site, shape in self._shapes.items():
            groups.setdefault((site.module, shape), []).append(site)
        self._groups = [
            PackedFactors(slots, len(sites), shape, max(ranks), base.device)
            for (_, shape), sites in groups.items()
        ]
        self.factors = nn.ModuleList(self._groups)
        # Of each site: its group, and its place in it.
        self._place = {
            site: (g, j) for g, sites in enumerate(groups.values()) for j, site in enumerate(sites)
        }
        self._columns = _columns(self._shapes)
        scales = [placement.scale(rank) for rank in ranks]
        self._scale_N = (
            None if all(s == 1 for s in scales) else torch.tensor(scales, device=base.device)
        )
        # The adapter in each slot, and each adapter's slot; not registered, so no framework moves
        # them.
        self._holders: list[int | None] = [None] * slots
        self._slot_N = torch.zeros(len(ranks), dtype=torch.int64, device=base.device)
        for n in range(slots):
            self._start(n, n)

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
        return sum(out for _, out in self._shapes.values())

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
        slot = next(s for s, holder in enumerate(self._holders) if holder not in inside)
        self._start(n, slot)
        return slot

    @torch.no_grad()
    def _start(self, n: int, slot: int) -> None:
        rank = self.ranks[n]
        for values in self.parameters():
            values[slot] = 0
        for site, a in initial_As(self._shapes, rank, self._seeds[n]).items():
            group, j = self._place[site]
            stacked = self._groups[group]
            stacked.A[slot, j, :, :rank] = a.to(stacked.A.device)
            if site in self._begin_with:
                a, b = self._begin_with[site]
                stacked.A[slot, j, :, : len(b)] = a.to(stacked.A.device)
                stacked.B[slot, j, : len(b)] = b.to(stacked.B.device)
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
        blocks, row = [], 0
        for block in batch.blocks:
            adapter_N = batch.adapter_of_row_R[row : row + block.rows : block.rows_of_each]
            # All slots in order need no gather: its copies would cost more than the products.
            whole = list(block.adapters) == self._holders
            blocks.append(
                _AdaptersOfBlock(
                    len(block.adapters),
                    block.rows * block.length,
                    None if whole else self.slots_of(adapter_N),
                    None if self._scale_N is None else self._scale_N[adapter_N][:, None, None],
                )
            )
            row += block.rows
        return Deltas(self._by_site(), blocks, keep)

    def weights(self, n: int) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (X, r) and B (r, D) of adapter n by site, detached, without the padding to K."""
        rank, slot = self.ranks[n], self.slot_of(n)
        found: dict[Site, tuple[Tensor, Tensor]] = {}
        for site, (group, j) in self._place.items():
            a, b = self._groups[group].A, self._groups[group].B
            found[site] = (
                a[slot, j, :, :rank].detach().clone(), b[slot, j, :rank].detach().clone()
            )  # fmt: skip
        return found

    def _by_site(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (S, X, K) and B (S, K, D) of every site."""
        stacks = [factors.by_site() for factors in self._groups]
        return {site: stacks[group][j] for site, (group, j) in self._place.items()}


class _AdaptersOfBlock(NamedTuple):
    """Adapters of one block of a batch.

    `positions`: of all its rows. `slot_N`: the adapters' slots, None for all slots in order.
    `scale`: factors of their products, (N, 1, 1), None where all are 1.
    """

    n: int
    positions: int
    slot_N: Tensor | None
    scale: Tensor | None


class Deltas:
    """Outputs of a batch's adapters at their sites, in fp32, for one forward pass.

    by_site: A (S, X, K) and B (S, K, D) of each site. keep: dropout's factors of each site's
    output, (T, D); empty without dropout.
    """

    def __init__(
        self,
        by_site: Mapping[Site, tuple[Tensor, Tensor]],
        blocks: Sequence[_AdaptersOfBlock],
        keep: Mapping[Site, Tensor],
    ) -> None:
        self._by_site, self._blocks, self._keep = by_site, blocks, keep
        # Projections of one input follow each other: it is converted once.
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, site: Site, x: Tensor) -> Tensor:
        """Return each position's adapter output, (..., D), for a site's input, (..., X)."""
        a_SXK, b_SKD = self._by_site[site]
        if self._last is None or self._last[0] is not x:
            self._last = x, x.reshape(-1, x.shape[-1]).to(a_SXK.dtype)
        parts = []
        x_TXs = self._last[1].split([block.positions for block in self._blocks])
        for block, x_TX in zip(self._blocks, x_TXs, strict=True):
            slot_N, scale = block.slot_N, block.scale
            a_NXK, b_NKD = (a_SXK, b_SKD) if slot_N is None else (a_SXK[slot_N], b_SKD[slot_N])
            low_NPK = torch.bmm(x_TX.unflatten(0, (block.n, -1)), a_NXK)
            if scale is not None:
                low_NPK = low_NPK * scale
            parts.append(torch.bmm(low_NPK, b_NKD).flatten(0, 1))
        delta_TD = torch.cat(parts)
        if self._keep:
            delta_TD = delta_TD * self._keep[site]
        return delta_TD.view(*x.shape[:-1], -1)


def _columns(shapes: SiteShapes) -> dict[Site, slice]:
    """Return the columns of each site's output among those of all."""
    found: dict[Site, slice] = {}
    start = 0
    for site, (_, out) in shapes.items():
        found[site] = slice(start, start + out)
        start += out
    return found
