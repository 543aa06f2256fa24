"""Sizes of a base model, from its transformers config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from pmlray.config.placement import MLP_BLOCK
from pmlray.errors import ModelError

# Supported architectures with the `model_type` by which transformers chooses the class.
MODEL_TYPES: Mapping[str, str] = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
ARCHITECTURES = tuple(MODEL_TYPES)
# Default of transformers' Qwen3Config; Llama's follows from the hidden width.
QWEN3_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a decoder-only base; `context` is its longest input in tokens."""

    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context: int

    @property
    def layer_weights(self) -> int:
        """Number of weights in one decoder layer's projections."""
        attention = self.hidden * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear module of a decoder layer, by its name there."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, queries),
            "self_attn.k_proj": (self.hidden, keys),
            "self_attn.v_proj": (self.hidden, keys),
            "self_attn.o_proj": (queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    @property
    def adaptable(self) -> dict[str, tuple[int, int]]:
        """Input and output width of whatever in a decoder layer an adapter can be added to: its
        linear modules and the paper's block, the whole MLP."""
        return {**self.modules, MLP_BLOCK: (self.hidden, self.hidden)}


def geometry_from_config(config: Mapping[str, Any], where: str) -> Geometry:
    """Return the geometry in a transformers config.json; ModelError for an invalid one or an
    unsupported family."""
    try:
        found = (config.get("architectures") or ["none"])[0]
        if found not in ARCHITECTURES:
            raise ModelError(
                f"{where}: architecture {found!r} is not supported; pmlray needs the decoder layers"
                f" of {' or '.join(ARCHITECTURES)} (mlp.down_proj, rotary positions, causal"
                " attention)"
            )
        windows = bool(config.get("use_sliding_window")) and config.get("layer_types") is None
        if windows or "sliding_attention" in (config.get("layer_types") or []):
            raise ModelError(
                f"{where}: sliding-window layers are not supported, only full attention"
            )
        heads = config["num_attention_heads"]
        by_width = QWEN3_HEAD_DIM if MODEL_TYPES[found] == "qwen3" else None
        geometry = Geometry(
            n_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            n_heads=heads,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or by_width or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
        )
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{where}: no transformers config of a language model ({error!r})") from (
            error
        )
    if any(type(size) is not int or not 1 <= size < 2**31 for size in astuple(geometry)):
        raise ModelError(f"{where}: a size is no positive number: {geometry}")
    return geometry
