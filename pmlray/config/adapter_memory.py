"""Memory that training adapters takes beside the frozen base, from sizes alone."""

from __future__ import annotations

from pmlray.config.placement import MLP_BLOCK
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import ModelError

# Of a trained parameter, in float32: itself, its gradient and AdamW's two moments.
PARAM_BYTES = 4 * 4
# Modules that read the same input, which is kept once.
SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj", MLP_BLOCK),
)


def adapter_bytes(search: PreparedSearch, lora_rank: int) -> int:
    """Return the bytes of one adapter with its gradient and the optimiser's state."""
    return PARAM_BYTES * lora_rank * search.params_per_rank


def position_bytes(search: PreparedSearch, lora_rank: int, itemsize: int) -> int:
    """Return the bytes that the backward pass needs kept for one position of a micro-batch.

    They are the activations of the frozen layers that gradients go back through and, of every site,
    its input in float32, its low-rank activations and dropout's mask. lora_rank: the largest of a
    pack, to which all others are padded; itemsize: bytes of a number of the base's arithmetic.
    """
    g, placement = search.source.geometry, search.placement
    heads = g.head_dim * (2 * g.n_heads + 2 * g.n_kv_heads)
    frozen = itemsize * (4 * g.intermediate + 2 * g.hidden + heads)
    site_bytes, inputs = 0, dict[str, int]()
    for module in placement.modules:
        width, out = g.adaptable[module]
        site_bytes += 4 * (lora_rank + (out if search.spec.recipe.dropout else 0))
        group = next((group for group in SHARED_INPUTS if module in group), (module,))
        inputs[group[0]] = 4 * width
    of_sites = len(placement.layers) * (site_bytes + sum(inputs.values()))
    return (g.n_layers - g.first_trained_layer(placement)) * frozen + of_sites


def check_adapter_fits(search: PreparedSearch, lora_rank: int, memory: int) -> None:
    """Check that an adapter of a rank alone is within a device's memory; ModelError otherwise.

    memory: of the device, bytes.
    """
    if (needed := adapter_bytes(search, lora_rank)) <= memory:
        return
    raise ModelError(
        f"an adapter of rank {lora_rank} at {search.describe_place()} of"
        f" {search.spec.model.id} has {lora_rank * search.params_per_rank:,} parameters, which take"
        f" {needed / 2**30:.1f} GiB with their gradients and moments, but a pack's device has"
        f" {memory / 2**30:.1f} GiB: use smaller ranks, fewer modules or fewer layers"
    )
