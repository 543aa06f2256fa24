"""Adapters of one site, as tests make them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pmlray.config.adapters.placement import Placement, Site
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import save_adapter


def at_site(placement: Placement, a: Tensor, b: Tensor) -> dict[Site, tuple[Tensor, Tensor]]:
    """A (X, r) and B (r, D) as the weights of a placement's only site."""
    (site,) = placement.sites
    return {site: (a, b)}


def save_one(folder: Path, probe: Probe, weights: tuple[Tensor, Tensor], base_id: str) -> None:
    """Write an adapter of one site."""
    placement = probe.to_placement()
    save_adapter(folder, placement, at_site(placement, *weights), base_id)
