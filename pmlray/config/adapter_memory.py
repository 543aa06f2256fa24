"""Memory that training adapters takes beside the frozen base, from sizes alone."""

from __future__ import annotations

from pmlray.config.bases.geometry import Geometry
from pmlray.config.model_spec import Dtype
from pmlray.config.placement import MLP_BLOCK, Placement

# Of a trained parameter, in float32: itself, its gradient and AdamW's two moments.
PARAM_BYTES = 4 * 4
DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
# Modules that read the same input, which is kept once.
SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj", MLP_BLOCK),
)


def adapter_bytes(placement: Placement, geometry: Geometry, lora_rank: int) -> int:
    """Return the bytes of one adapter with its gradient and the optimiser's state."""
    return PARAM_BYTES * lora_rank * placement.params_per_rank(geometry.adaptable)


def position_bytes(
    placement: Placement, geometry: Geometry, lora_rank: int, dtype: Dtype, dropout: bool
) -> float:
    """Return the bytes that the backward pass needs kept for one position of a micro-batch.

    They are the activations of the frozen layers that gradients go back through, and of every site
    its input in float32, its low-rank activations and dropout's mask. lora_rank: the largest of the
    pack, to which all others are padded; dtype: of the base's arithmetic.
    """
    g = geometry
    heads = g.head_dim * (2 * g.n_heads + 2 * g.n_kv_heads)
    frozen = DTYPE_BYTES[dtype] * (4 * g.intermediate + 2 * g.hidden + heads)
    layers = g.n_layers - placement.first_trained_layer
    own = 0
    for module in placement.modules:
        width, out = g.adaptable[module]
        own += 4 * (lora_rank + out * dropout)
        first = next((group for group in SHARED_INPUTS if module in group), (module,))
        if next(m for m in first if m in placement.modules) == module:
            own += 4 * width
    return layers * frozen + len(placement.layers) * own
