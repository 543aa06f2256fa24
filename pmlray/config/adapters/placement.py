"""Where an adapter's factors sit in a base, in the terms of PEFT's LoraConfig."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MLP_BLOCK, DOWN_PROJ = "mlp", "mlp.down_proj"


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place of an adapter: a pair of factors A and B.

    Args:
        layer: decoder layer, from 0.
        module: name within the layer of the linear module that the pair is added to, such as
            `mlp.down_proj`; or `mlp`, for one parallel to the whole MLP (the paper's).
    """

    layer: int
    module: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Sites of an adapter: each of `modules` in each of `layers`, and the scale of their output.

    Args:
        layers: decoder layers, ascending.
        modules: names within a decoder layer, in its order.
        alpha: LoRA's alpha; None: alpha_per_rank times the rank.
        alpha_per_rank: alpha as a multiple of the rank.
        use_rslora: divide alpha by the root of the rank instead of the rank (arXiv 2312.03732).
    """

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    alpha: float | None = None
    alpha_per_rank: float = 1.0
    use_rslora: bool = False

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, by layer, then in the order of the modules."""
        return tuple(Site(layer, module) for layer in self.layers for module in self.modules)

    @property
    def is_block(self) -> bool:
        """Whether the sites are the paper's, which PEFT does not have."""
        return MLP_BLOCK in self.modules

    @property
    def kept_site(self) -> Site | None:
        """The only site, where its output reaches nothing but its layer's own output.

        That layer is then frozen as those below it, but for a term added at its end.
        """
        only = self.sites[0]
        return only if len(self.sites) == 1 and only.module in (MLP_BLOCK, DOWN_PROJ) else None

    def lora_alpha(self, lora_rank: int) -> float:
        """Return LoRA's alpha at a rank."""
        return self.alpha_per_rank * lora_rank if self.alpha is None else self.alpha

    def scale(self, lora_rank: int) -> float:
        """Return the factor of the product of A and B at a rank."""
        root = math.sqrt(lora_rank) if self.use_rslora else lora_rank
        return self.lora_alpha(lora_rank) / root

    def params_per_rank(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Return the number of trainable parameters per unit of rank.

        shapes: input and output width of each module, by name.
        """
        return len(self.layers) * sum(sum(shapes[module]) for module in self.modules)

    def largest_rank(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Return the largest rank that the product of A and B has at every site.

        shapes: as for `params_per_rank`.
        """
        return min(min(shapes[module]) for module in self.modules)

    def rank_beyond(self, lora_rank: int, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """Return why no adapter can use such a rank; None where it can.

        shapes: as for `params_per_rank`.
        """
        if lora_rank <= (most := self.largest_rank(shapes)):
            return None
        module = min(self.modules, key=lambda module: min(shapes[module]))
        named = "the paper's block" if module == MLP_BLOCK else module
        return (
            f"{named} maps {shapes[module][0]} values to {shapes[module][1]}: a rank above its"
            f" smaller side holds nothing more; use at most {most}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the placement as JSON types."""
        return {**asdict(self), "layers": list(self.layers), "modules": list(self.modules)}


def all_sites(placements: Iterable[Placement]) -> tuple[Site, ...]:
    """Return the sites of any of the placements, by layer."""
    found = dict.fromkeys(site for placement in placements for site in placement.sites)
    return tuple(sorted(found, key=lambda site: site.layer))


def kept_sites(placements: Iterable[Placement]) -> tuple[Site, ...]:
    """Return the sites of the lowest adapted layer, where none reaches more than its output.

    Each placement that begins there has a kept site, so that this layer too is frozen as those
    below it, but for the terms added at its end; empty where one has other sites there.
    """
    at = list(placements)
    lowest = min(placement.layers[0] for placement in at)
    found = {placement.kept_site for placement in at if placement.layers[0] == lowest}
    return tuple(sorted(site for site in found if site)) if None not in found else ()
