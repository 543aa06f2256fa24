"""Bases that take the general path, laid out without weights by transformers' own classes.

Only here does `config` load torch and transformers, and only for such bases: what their layers are
is told by nothing but their code.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

from pmlray.config.bases.families import FAST, rope_limit
from pmlray.config.bases.geometry import MOST_LAYERS, MOST_WIDTH, Geometry, OwnLayers, check_sizes
from pmlray.config.placement import MLP_BLOCK
from pmlray.errors import INSTALL_TRAIN, ModelError

EXPERT = re.compile(r"(^|\.)experts\.")
# Keys of configs of models that read more than text.
MULTIMODAL = (
    "vision_config", "audio_config", "speech_config", "image_token_id", "image_token_index",
)  # fmt: skip
# What transformers raises for a config that its classes cannot be made of.
UNUSABLE = (
    AssertionError, AttributeError, ArithmeticError, ImportError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class NamesFound(NamedTuple):
    """How a checkpoint's tensors differ from a model's: names lacking, left over, and those of
    another shape (name, shape in the weights, shape by the config)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def own_geometry(config: Mapping[str, Any], architecture: str, where: str) -> Geometry:
    """Return the sizes and linear modules of a base of any family.

    Args:
        config: of transformers, as in config.json.
        architecture: the model's class.
        where: the base, for errors.

    Raises:
        ModelError: pmlray cannot work with such a base, and why; or transformers, by which its
            layers are found, is not installed.
    """
    _refuse_by_config(config, architecture, where)
    model = _laid_out(config, architecture, where)
    settings: Any = model.config
    n_layers = settings.num_hidden_layers
    path, layers = find_layers(model, n_layers, where)
    modules, refused = _linear_modules(layers)
    if not modules:
        raise ModelError(
            f"{where}: {architecture} has no linear module that all of its layers have, in which an"
            " adapter could be placed"
        )
    heads = _size(settings, "num_attention_heads") or 1
    geometry = Geometry(
        n_layers=n_layers,
        hidden=settings.hidden_size,
        intermediate=_size(settings, "intermediate_size") or max(w for w, _ in modules.values()),
        n_heads=heads,
        n_kv_heads=_size(settings, "num_key_value_heads") or heads,
        head_dim=_size(settings, "head_dim") or max(1, settings.hidden_size // heads),
        vocab=model.get_input_embeddings().weight.shape[0],
        context=rope_limit(config) or longest_input(settings, where),
        own=OwnLayers(
            path=path,
            modules=modules,
            refused=refused,
            weights=sum(p.numel() for layer in layers for p in layer.parameters()),
            has_mlp=all(hasattr(layer, MLP_BLOCK) for layer in layers),
        ),
    )
    check_sizes(geometry, where)
    return geometry


def compare_tensors(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> NamesFound:
    """Compare a checkpoint's tensors with those of its model, renamed as transformers does.

    Shapes of tensors that transformers puts together when it loads them, as of experts, are not
    compared.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model = _laid_out(config, config["architectures"][0], where)
    needed: dict[str, Any] = model.state_dict()
    steps: Any = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    found: dict[str, tuple[int, ...] | None] = {}
    for name, shape in shapes.items():
        own, converted = rename_source_key(
            name, renamings, converters, model.base_model_prefix, needed
        )
        found[own] = shape if converted is None else None
    missing = {name for name in needed if name not in found}
    for one, other in getattr(model, "all_tied_weights_keys", {}).items():
        if one in found or other in found:
            missing -= {one, other}
    return NamesFound(
        tuple(sorted(_without(missing, model._keys_to_ignore_on_load_missing))),
        tuple(sorted(_without(found.keys() - needed.keys(), _never_loaded(model)))),
        tuple(
            (name, shape, tuple(needed[name].shape))
            for name, shape in found.items()
            if shape is not None and name in needed and shape != tuple(needed[name].shape)
        ),
    )


def find_layers(model: Any, n_layers: int, where: str) -> tuple[str, Any]:
    """Return the name of a model's list of decoder layers, and the list; ModelError without one."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return name, module
    raise ModelError(
        f"{where}: {type(model).__name__} has no list of {n_layers} decoder layers, in which"
        " adapters could be placed"
    )


def is_linear(module: Any) -> bool:
    """Return whether a module of torch is linear: one that PEFT's LoRA adapts as such."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def linear_shape(module: Any) -> tuple[int, int]:
    """Return the input and output width of a linear module."""
    rows, columns = module.weight.shape
    # transformers' Conv1D, of GPT-2, keeps its weight the other way round.
    return (columns, rows) if hasattr(module, "in_features") else (rows, columns)


def longest_input(settings: Any, where: str) -> int:
    """Return the most tokens that a model reads, by its transformers config.

    ModelError where it does not tell.
    """
    for key in ("max_position_embeddings", "seq_length", "max_seq_len", "max_sequence_length"):
        if (found := getattr(settings, key, None)) is not None:
            return found
    # Bloom's, which has no positions but distances: its makers trained it on so many.
    if settings.model_type == "bloom":
        return 2048
    raise ModelError(
        f"{where}: its config.json does not tell how many tokens it reads"
        " (max_position_embeddings)"
    )


def _size(settings: Any, name: str) -> int | None:
    """Return a size that all layers have alike; None where they differ, or have none."""
    try:
        found = getattr(settings, name, None)
    except RuntimeError:  # transformers' own for sizes that differ.
        return None
    return found if type(found) is int else None


def _refuse_by_config(config: Mapping[str, Any], architecture: str, where: str) -> None:
    """Raise ModelError for what the config alone shows to be no base for pmlray."""
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{where}: {architecture} is an encoder-decoder; pmlray measures decoder-only causal"
            " language models"
        )
    kind = config.get("model_type")
    if architecture in FAST and kind != FAST[architecture].model_type:
        raise ModelError(
            f"{where}: config.json contradicts itself: model_type {kind!r}, by which transformers"
            f" chooses the layers, does not go with {architecture}; give the model's own"
            " config.json"
        )
    if any(config.get(key) is not None for key in MULTIMODAL):
        raise ModelError(
            f"{where}: {architecture} reads more than text (multimodal); pmlray needs a language"
            " model alone: give its text model, saved by itself"
        )


def _class_name(config: Mapping[str, Any], architecture: str, where: str) -> None:
    """Check that transformers itself has the class, as a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    own: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    if own is not None and architecture in ([own] if isinstance(own, str) else own):
        return
    if own is None and config.get("auto_map"):
        raise ModelError(
            f"{where}: {architecture} is not of transformers: its code is in its own files"
            " (auto_map), and pmlray runs no model's own code"
        )
    raise ModelError(
        f"{where}: architecture {architecture!r} is not supported: for model_type {kind!r}"
        f" transformers has {own or 'no causal language model'}; pmlray needs a decoder-only one:"
        f" {', '.join(FAST)} (fast path), or another *ForCausalLM of transformers"
    )


def _laid_out(config: Mapping[str, Any], architecture: str, where: str) -> Any:
    """Return the model of a config on torch's meta device, without weights."""
    sizes = [v for v in config.values() if isinstance(v, int) and not isinstance(v, bool)]
    layers = [config.get(key) for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers")]
    if any(size >= MOST_WIDTH for size in sizes) or any(
        isinstance(n, int) and not 0 < n <= MOST_LAYERS for n in layers
    ):
        raise ModelError(f"{where}: config.json has a size that no model has")
    try:
        stored = json.dumps(config, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: config.json cannot be read ({error})") from error
    try:
        return _model_of(stored, architecture)
    except ModelError as error:
        raise ModelError(f"{where}: {str(error).removeprefix(': ')}") from error
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise ModelError(
            f"{where}: the layers of {architecture} are found by transformers, which is not"
            f" installed here ({error}); run: {INSTALL_TRAIN}"
        ) from error
    except UNUSABLE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{where}: transformers cannot make {architecture} of its config.json ({why})"
        ) from error


@lru_cache(maxsize=2)
def _model_of(stored: str, architecture: str) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    config: dict[str, Any] = json.loads(stored)
    _class_name(config, architecture, "")
    own = {key: value for key, value in config.items() if key != "auto_map"}
    try:
        settings = CONFIG_MAPPING[config["model_type"]].from_dict(own)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    if getattr(settings, "is_encoder_decoder", False):
        raise ModelError(f"{architecture} is an encoder-decoder; pmlray needs a decoder-only model")
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    if type(model)._is_stateful:
        raise ModelError(
            f"{architecture} has layers that carry a state from token to token (state-space or"
            " linear attention), through which pmlray does not train; give a model whose layers"
            " all attend"
        )
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ModelError(
            f"{architecture} attends to later tokens too; pmlray needs a causal language model"
        )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"transformers' {architecture} cannot give the logits of some positions alone"
        )
    return model.eval()


def _linear_modules(layers: Any) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return the linear modules that all layers have, and the reasons why others are no sites."""
    found = [
        {name: linear_shape(m) for name, m in layer.named_modules() if is_linear(m)}
        for layer in layers
    ]
    named = {name: None for own in found for name in own}
    modules, refused = dict[str, tuple[int, int]](), dict[str, str]()
    for name in named:
        shapes = {own.get(name) for own in found}
        if EXPERT.search(name):
            refused[name] = "it is an expert's, which sees only the tokens routed to it"
        elif len(shapes) > 1:
            having = [n for n, own in enumerate(found) if name in own]
            refused[name] = (
                f"only layers {', '.join(map(str, having))} have it"
                if None in shapes
                else "its widths differ from layer to layer"
            )
        elif 1 in next(iter(shapes)):
            refused[name] = "it gives one value, which no rank fits"
        else:
            modules[name] = cast("tuple[int, int]", next(iter(shapes)))
    for layer in layers:
        for name, weight in layer.named_parameters():
            if weight.dim() > 2 and EXPERT.search(f"{name}."):
                refused[name] = "it is the experts', one tensor for all of them, and no module"
    return modules, refused


def _without(names: Collection[str], patterns: Collection[str] | None) -> list[str]:
    return [name for name in names if not any(re.search(p, name) for p in patterns or ())]


def _never_loaded(model: Any) -> list[str]:
    # Buffers of rotary positions, which earlier versions stored.
    ignored = model._keys_to_ignore_on_load_unexpected
    return [r"rotary_emb\.inv_freq$", *(ignored or ())]
