"""The model of a config, laid out without weights by transformers' own classes.

Only here and in `own_layers` does `config` load torch and transformers, and only for bases that
take the general path: what their layers are is told by nothing but their code.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from pmlray.config.bases.families import FAST, rope_limit
from pmlray.config.bases.geometry import MOST_LAYERS, MOST_WIDTH
from pmlray.errors import INSTALL_TRAIN, ModelError

# Keys of configs of models that read more than text.
MULTIMODAL = (
    "vision_config", "audio_config", "speech_config", "image_token_id", "image_token_index",
)  # fmt: skip
# What transformers raises for a config that its classes cannot be made of.
UNUSABLE = (
    AssertionError, AttributeError, ArithmeticError, ImportError, LookupError, NotImplementedError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def refuse_by_config(config: Mapping[str, Any], architecture: str, where: str) -> None:
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


def laid_out(config: Mapping[str, Any], architecture: str, where: str) -> Any:
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
        settings = cast("Any", CONFIG_MAPPING)[config["model_type"]].from_dict(own)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    if getattr(settings, "is_encoder_decoder", False):
        raise ModelError(f"{architecture} is an encoder-decoder; pmlray needs a decoder-only model")
    with torch.device("meta"):
        model = cast("Any", AutoModelForCausalLM).from_config(settings, trust_remote_code=False)
    if cast("Any", type(model))._is_stateful:
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
    """Return the most tokens that a model reads, by its transformers config; see `Geometry`.

    ModelError where it does not tell.
    """
    if (limit := rope_limit(settings.to_dict())) is not None:
        return limit
    for key in ("max_position_embeddings", "seq_length", "max_seq_len", "max_sequence_length"):
        if (found := getattr(settings, key, None)) is not None:
            return found
    # Bloom's, which has no positions but distances: its makers trained it on so many.
    if settings.model_type == "bloom":
        return 2048
    raise ModelError(
        f"{where}: its config.json does not tell how many tokens it reads (max_position_embeddings)"
    )
