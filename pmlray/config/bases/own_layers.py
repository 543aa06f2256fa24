"""Sizes, linear modules and weights of bases that take the general path, as their classes tell."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

from pmlray.config.adapters.placement import MLP_BLOCK
from pmlray.config.bases.geometry import Geometry, OwnLayers, check_sizes
from pmlray.config.bases.own_model import (
    find_layers,
    is_linear,
    laid_out,
    linear_shape,
    longest_input,
    refuse_by_config,
)
from pmlray.errors import ModelError

EXPERT = re.compile(r"(^|\.)experts\.")


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
    refuse_by_config(config, architecture, where)
    model = laid_out(config, architecture, where)
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
        context=longest_input(settings, where),
        adds_plainly=False,
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

    model = laid_out(config, config["architectures"][0], where)
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


def _size(settings: Any, name: str) -> int | None:
    """Return a size that all layers have alike; None where they differ, or have none."""
    try:
        found = getattr(settings, name, None)
    except RuntimeError:  # transformers' own for sizes that differ.
        return None
    return found if type(found) is int else None


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
        else:
            shape = cast("tuple[int, int]", next(iter(shapes)))
            if min(shape) == 1:
                refused[name] = "it gives one value, which no rank fits"
            else:
                modules[name] = shape
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
