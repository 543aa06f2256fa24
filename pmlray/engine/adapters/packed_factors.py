"""Factors of adapters that have one placement: for each kind of module one pair of tensors.

Shapes: S slots of adapters, J layers of one module, X a site's input width, D its output width, K
the largest rank of the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pmlray.config.adapters.placement import MLP_BLOCK, Placement, Site

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
    """Factors of adapters at the sites of one module: A (S, J, X, K) and B (S, J, K, D)."""

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


class PlacedFactors:
    """Factors of all adapters of a pack that have one placement.

    Attributes:
        shapes: input and output width of each site, in the placement's order.
        first, slots: the first of their slots among those of the pack, and their number.
        groups: factors of each kind of module.
    """

    def __init__(
        self,
        placement: Placement,
        base_shapes: SiteShapes,
        ranks: Sequence[int],
        first: int,
        slots: int,
        device: torch.device,
    ) -> None:
        self.shapes: SiteShapes = {site: base_shapes[site] for site in placement.sites}
        self.first, self.slots = first, slots
        sites_of: dict[tuple[str, tuple[int, int]], list[Site]] = {}
        for site, shape in self.shapes.items():
            sites_of.setdefault((site.module, shape), []).append(site)
        self.groups = [
            PackedFactors(slots, len(sites), shape, max(ranks), device)
            for (_, shape), sites in sites_of.items()
        ]
        # Of each site: its group, and its place in it.
        self._place = {
            site: (g, j)
            for g, sites in enumerate(sites_of.values())
            for j, site in enumerate(sites)
        }

    @property
    def held(self) -> slice:
        """Their slots among those of the pack."""
        return slice(self.first, self.first + self.slots)

    @torch.no_grad()
    def start(self, slot: int, lora_rank: int, seed: int, begin_with: AdapterWeights) -> None:
        """Put an untrained adapter into a slot of the pack.

        begin_with: factors of its first columns at some sites, in place of fresh ones.
        """
        own = slot - self.first
        for group in self.groups:
            group.A[own], group.B[own] = 0, 0
        for site, a in initial_As(self.shapes, lora_rank, seed).items():
            g, j = self._place[site]
            stacked = self.groups[g]
            stacked.A[own, j, :, :lora_rank] = a.to(stacked.A.device)
            if site in begin_with:
                a, b = begin_with[site]
                stacked.A[own, j, :, : len(b)] = a.to(stacked.A.device)
                stacked.B[own, j, : len(b)] = b.to(stacked.B.device)

    def weights(self, slot: int, lora_rank: int) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (X, r) and B (r, D) of a slot of the pack, detached, without padding to K."""
        own = slot - self.first
        found: dict[Site, tuple[Tensor, Tensor]] = {}
        for site, (g, j) in self._place.items():
            a, b = self.groups[g].A, self.groups[g].B
            found[site] = (
                a[own, j, :, :lora_rank].detach().clone(), b[own, j, :lora_rank].detach().clone()
            )  # fmt: skip
        return found

    def by_site(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (S, X, K) and B (S, K, D) of every site."""
        stacks = [factors.by_site() for factors in self.groups]
        return {site: stacks[g][j] for site, (g, j) in self._place.items()}
