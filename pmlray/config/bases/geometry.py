"""Sizes of a base model, from its transformers config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from pmlray.config.adapters.placement import MLP_BLOCK, Placement, kept_sites
from pmlray.config.bases.families import FAST, Path, family_of, rope_limit
from pmlray.errors import ModelError

LLAMAS_LAYERS = "model.layers"
# Sizes that no model has; more is damage, and would take forever to lay out.
MOST_LAYERS, MOST_WIDTH = 4096, 2**31


@dataclass(frozen=True, slots=True)
class OwnLayers:
    """Decoder layers of a base that takes the general path, as its own classes have them.

    Args:
        path: name of the list of layers in the model, such as `transformer.h`.
        modules: input and output width of the linear modules that every layer has, by name.
        refused: modules that cannot be adapted, by name, each with the reason.
        weights: number of weights in all layers together.
        has_mlp: whether every layer has a module named `mlp`.
    """

    path: str
    modules: Mapping[str, tuple[int, int]]
    refused: Mapping[str, str]
    weights: int
    has_mlp: bool


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a decoder-only base.

    `context` is the longest input in tokens that it reads, at once as token by token.

    fused: whether the projections of queries, keys and values are one, and gate and up too.
    adds_plainly: whether the MLP's output is added to its layer's as it is. own: what the sizes do
    not tell, of a base that takes the general path.
    """

    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    context: int
    fused: bool = False
    adds_plainly: bool = True
    own: OwnLayers | None = None

    @property
    def path(self) -> Path:
        """Which of the engine's paths the base takes."""
        return "fast" if self.own is None else "general"

    @property
    def layers_path(self) -> str:
        """Name of the list of decoder layers in the model."""
        return LLAMAS_LAYERS if self.own is None else self.own.path

    @property
    def layer_weights(self) -> int:
        """Number of weights in one decoder layer's projections."""
        if self.own is not None:
            return self.own.weights // self.n_layers
        attention = self.hidden * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each linear module of a decoder layer, by its name there."""
        if self.own is not None:
            return dict(self.own.modules)
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        if self.fused:
            return {
                "self_attn.qkv_proj": (self.hidden, queries + 2 * keys),
                "self_attn.o_proj": (queries, self.hidden),
                "mlp.gate_up_proj": (self.hidden, 2 * self.intermediate),
                "mlp.down_proj": (self.intermediate, self.hidden),
            }
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
        if self.refusal(MLP_BLOCK) is not None:
            return self.modules
        return {**self.modules, MLP_BLOCK: (self.hidden, self.hidden)}

    def first_trained_layer(self, *placements: Placement) -> int:
        """Return the number of decoder layers through which no gradient passes, of adapters with
        these placements on one base."""
        kept = kept_sites(placements)
        reaches = self.own is None and (
            self.adds_plainly or all(site.module == MLP_BLOCK for site in kept)
        )
        return min(placement.layers[0] for placement in placements) + (bool(kept) and reaches)

    def refusal(self, module: str) -> str | None:
        """Return why a module that the base has cannot be adapted; None where nothing is known.

        module: a name within a decoder layer, or its last part or parts; `mlp` for the paper's
        block.
        """
        if self.own is None:
            return None
        if module == MLP_BLOCK:
            return None if self.own.has_mlp else "the base's layers have no module named mlp"
        for name, why in self.own.refused.items():
            # What holds the experts is named as often as what they hold.
            if f".{name}".endswith(f".{module}") or f".{module}." in f".{name}.":
                return f"{name}: {why}"
        return None


def geometry_from_config(config: Mapping[str, Any], where: str) -> Geometry:
    """Return the geometry in a transformers config.json; ModelError for an invalid one or a family
    that cannot work."""
    try:
        found = (config.get("architectures") or ["none"])[0]
        family = family_of(config, found)
        if family is None:
            # Imported here: it needs transformers, which bases of Llama's shape do not.
            from pmlray.config.bases.own_layers import own_geometry

            return own_geometry(config, found, where)
        heads = config["num_attention_heads"]
        told = {**family.defaults, **config}
        geometry = Geometry(
            n_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            n_heads=heads,
            n_kv_heads=told.get("num_key_value_heads") or heads,
            head_dim=told.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            context=rope_limit(config) or config["max_position_embeddings"],
            fused=family.fused,
            adds_plainly=family.adds_plainly,
        )
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{where}: no transformers config of a language model ({error!r})") from (
            error
        )
    check_sizes(geometry, where)
    return geometry


def check_sizes(geometry: Geometry, where: str) -> None:
    """Raise ModelError where a size is no positive number."""
    sizes = astuple(geometry)[:8]
    if any(type(size) is not int or not 1 <= size < MOST_WIDTH for size in sizes):
        raise ModelError(f"{where}: a size is no positive number: {geometry}")


__all__ = ["FAST", "Geometry", "OwnLayers", "check_sizes", "geometry_from_config"]
