"""Memory that training adapters takes beside the frozen base, from sizes alone."""

from __future__ import annotations

from collections.abc import Iterable

from pmlray.config.adapters.placement import MLP_BLOCK, Placement, all_sites
from pmlray.config.bases.geometry import Geometry
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import ModelError
from pmlray.types import DesignPoint

# Of a trained parameter, in float32: itself, its gradient and AdamW's two moments.
PARAM_BYTES = 4 * 4
# Modules that read the same input, which is kept once.
SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj", MLP_BLOCK),
)


def adapter_bytes(search: PreparedSearch, point: DesignPoint) -> int:
    """Return the bytes of a point's adapter with its gradient and the optimiser's state."""
    return PARAM_BYTES * point.lora_rank * search.params_per_rank_of(point)


def widest(search: PreparedSearch, points: Iterable[DesignPoint]) -> dict[Placement, DesignPoint]:
    """Return the point of the largest rank of each placement, to which its others are padded."""
    found = dict[Placement, DesignPoint]()
    for point in points:
        placement = search.placement_of(point)
        found[placement] = max(found.get(placement, point), point, key=lambda p: p.lora_rank)
    return found


def position_bytes(search: PreparedSearch, points: Iterable[DesignPoint], itemsize: int) -> int:
    """Return the bytes that the backward pass needs kept for one position of a micro-batch.

    They are the activations of the frozen layers that gradients go back through; of every site of
    the position's own adapter its input in float32 and its low-rank activations; and dropout's mask
    of all sites. points: of the adapters of a pack; itemsize: bytes of a number of the base's
    arithmetic.
    """
    g, ranks = search.source.geometry, widest(search, points)
    heads = g.head_dim * (2 * g.n_heads + 2 * g.n_kv_heads)
    frozen = itemsize * (4 * g.intermediate + 2 * g.hidden + heads)
    mask = 0
    if search.spec.recipe.dropout:
        mask = 4 * sum(g.adaptable[site.module][1] for site in all_sites(ranks))
    of_adapter = max(_site_bytes(g, place, point.lora_rank) for place, point in ranks.items())
    return (g.n_layers - g.first_trained_layer(*ranks)) * frozen + of_adapter + mask


def _site_bytes(g: Geometry, placement: Placement, lora_rank: int) -> int:
    """Return the bytes of the inputs and the low-rank activations of a position's sites."""
    inputs = dict[str, int]()
    for module in placement.modules:
        group = next((group for group in SHARED_INPUTS if module in group), (module,))
        inputs[group[0]] = 4 * g.adaptable[module][0]
    low = 4 * lora_rank * len(placement.modules)
    return len(placement.layers) * (low + sum(inputs.values()))


def check_adapter_fits(search: PreparedSearch, points: Iterable[DesignPoint], memory: int) -> None:
    """Check that the adapter of each point alone is within a device's memory; ModelError otherwise.

    memory: of the device, bytes.
    """
    for point in widest(search, points).values():
        if (needed := adapter_bytes(search, point)) > memory:
            n_params = point.lora_rank * search.params_per_rank_of(point)
            raise ModelError(
                f"an adapter of rank {point.lora_rank} at {search.place_name(point)} of"
                f" {search.spec.model.id} has {n_params:,} parameters, which take"
                f" {needed / 2**30:.1f} GiB with their gradients and moments, but a pack's device"
                f" has {memory / 2**30:.1f} GiB: use smaller ranks, fewer modules or fewer layers"
            )
