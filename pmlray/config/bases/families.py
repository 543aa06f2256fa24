"""Families of bases whose decoder layers have Llama's shape, which the engine's fast path runs.

All others take the general path, which runs a model's own layers. Which one a base takes follows
from its config alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Path = Literal["fast", "general"]


@dataclass(frozen=True, slots=True)
class Family:
    """Decoder layers of Llama's shape, and how they differ from it.

    Args:
        model_type: by which transformers chooses the class.
        biased: linear modules with a bias, each with the key that turns it on, None for always.
        norms: names of the norms of a layer.
        norm_of_keys: width of the norms of queries and keys: a head's, all heads', or none.
        fused: the projections of queries, keys and values are one, and so are gate and up.
        windows: which layers attend within `sliding_window`: all, those that `layer_types` names,
            or none.
        adds_plainly: whether the output of the MLP is added to the layer's as it is.
        partly_rotated: whether rotary positions may turn a part of each head.
        defaults: values that transformers takes for keys that a config lacks.
    """

    model_type: str
    biased: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_of_keys: Literal["head", "width"] | None = None
    fused: bool = False
    windows: Literal["all", "layer_types"] | None = None
    adds_plainly: bool = True
    partly_rotated: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_ATTENTION = dict.fromkeys((*_QKV, "self_attn.o_proj"), "attention_bias")
_MLP = dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), "mlp_bias")

# Source: transformers, models/*/modeling_*.py and configuration_*.py.
FAST: Mapping[str, Family] = {
    "LlamaForCausalLM": Family("llama", {**_ATTENTION, **_MLP}),
    "MistralForCausalLM": Family(
        "mistral", windows="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2",
        dict.fromkeys(_QKV),
        windows="layer_types",
        defaults={"num_key_value_heads": 32},
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3", _ATTENTION, norm_of_keys="head", windows="layer_types", defaults={"head_dim": 128}
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3",
        {**_ATTENTION, **_MLP},
        windows="layer_types",
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "GraniteForCausalLM": Family("granite", {**_ATTENTION, **_MLP}, adds_plainly=False),
    "Olmo2ForCausalLM": Family(
        "olmo2",
        _ATTENTION,
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        norm_of_keys="width",
        adds_plainly=False,
    ),
    "Phi3ForCausalLM": Family("phi3", fused=True, windows="all", partly_rotated=True),
}
# Kinds of rotary positions whose angles depend on nothing but the position, within a base's context
# (and `rope_limit`).
STATIC_ROPE = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


def family_of(config: Mapping[str, Any], architecture: str) -> Family | None:
    """Return the family of a base that takes the fast path; None for one that takes the general.

    Args:
        config: of transformers, as in config.json.
        architecture: the model's class.
    """
    family = FAST.get(architecture)
    if family is None or not _has_static_rope(config, family):
        return None
    kinds = {"full_attention", "sliding_attention"}
    # Where a config leaves them out, transformers derives them, from other keys, of these two.
    return family if kinds.issuperset(config.get("layer_types") or ()) else None


def window_of(family: Family, config: Any, layer: int) -> int | None:
    """Return the number of positions that a layer's attention reaches back; None for all.

    config: of transformers, with its defaults filled in.
    """
    if family.windows == "all":
        return config.sliding_window
    if family.windows == "layer_types" and config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None


def rope_limit(config: Mapping[str, Any]) -> int | None:
    """Return the longest row whose rotary positions are those of every shorter one; None for any.

    Beyond it longrope turns all positions by other angles, so that what a model reads at once is
    not what it reads token by token.
    """
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type")) == "longrope":
            key = "original_max_position_embeddings"
            return config.get(key) or rope.get(key)
    return None


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = [config.get(key) for key in ("rope_parameters", "rope_scaling")]
    return [cast("Mapping[str, Any]", rope) for rope in found if isinstance(rope, Mapping)]


def _has_static_rope(config: Mapping[str, Any], family: Family) -> bool:
    for rope in (*_ropes(config), dict[str, Any]()):
        kind = rope.get("rope_type", rope.get("type", "default"))
        # Those of some models differ by the kind of layer.
        if kind not in STATIC_ROPE or any(isinstance(x, Mapping) for x in rope.values()):
            return False
        part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if part not in (1, None) and not family.partly_rotated:
            return False
    return True
