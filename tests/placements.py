"""Placements of adapters in the tiny model, which has four layers of Llama's shape."""

from __future__ import annotations

from pmlray.config.adapters.placement import Placement

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

PLACEMENTS = {
    "all-linear everywhere": Placement((0, 1, 2, 3), ATTENTION + MLP, alpha_per_rank=2.0),
    "q and v of two layers": Placement((1, 3), ("self_attn.q_proj", "self_attn.v_proj")),
    "five of one layer": Placement(
        (2,), ("self_attn.q_proj", "self_attn.o_proj", *MLP), alpha=8.0, use_rslora=True
    ),
    "the paper's block twice": Placement((1, 2), ("mlp",), alpha_per_rank=0.5),
}
