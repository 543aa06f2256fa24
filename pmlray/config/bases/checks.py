"""Checks of a base model's files, as far as headers tell: no weights are read, and no torch.

transformers fills weights that a checkpoint lacks with random numbers, and leaves out those that
its config has no place for; a law of such a base would be the law of another model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from pmlray.config.bases.families import FAST, family_of
from pmlray.config.bases.geometry import Geometry, geometry_from_config
from pmlray.config.bases.safetensors_header import (
    FLOATS,
    INDEX,
    WEIGHTS,
    Tensor,
    listed,
    read_json,
    read_tensors,
)
from pmlray.errors import ModelError

CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer.json", "adapter_config.json"
# Files of which transformers makes a tokenizer. Without any of them it makes one of three tokens,
# by which every text is empty.
TOKENIZER_FILES = (TOKENIZER, "tokenizer.model", "vocab.json")
# Files of weights that are unpickled or otherwise not read by pmlray.
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Of rotary positions and of causal masks, which earlier versions of transformers stored.
BUFFERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias")
SAVED = "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"


def check_folder(folder: Path) -> Geometry:
    """Check a base model's folder against its config, and return its sizes.

    ModelError names what is missing, left over or contradictory, and the cure.
    """
    where, names = str(folder), [path.name for path in folder.iterdir() if path.is_file()]
    if CONFIG not in names:
        check_names(names, where)
        raise ModelError(f"{folder} holds no config.json; give a folder saved by save_pretrained")
    config = read_json(folder / CONFIG)
    geometry = geometry_from_config(config, where)
    check_config(config, geometry, where)
    check_names(names, where)
    check_tensors(config, geometry, read_tensors(folder), where)
    if TOKENIZER in names:
        check_tokenizer(folder / TOKENIZER, geometry.vocab, where)
    return geometry


def check_config(config: Mapping[str, Any], geometry: Geometry, where: str) -> None:
    """Raise ModelError for quantised weights, and for settings that contradict each other."""
    for key in ("quantization_config", "compression_config"):
        if (how := config.get(key)) is not None:
            method = (
                cast("dict[str, Any]", how).get("quant_method", "unknown")
                if isinstance(how, dict)
                else how
            )
            raise ModelError(
                f"{where}: its weights are quantised ({key}: {method}), and pmlray computes with"
                " whole ones; give the model that this one was made from"
            )
    architecture = config["architectures"][0]
    family = family_of(config, architecture)
    if family is not None and config.get("model_type") != family.model_type:
        raise ModelError(
            f"{where}: config.json contradicts itself: model_type {config.get('model_type')!r},"
            f" by which transformers chooses the layers, does not go with {architecture}; give the"
            " model's own config.json"
        )
    heads, kv_heads = geometry.n_heads, geometry.n_kv_heads
    uneven = architecture == "LlamaForCausalLM" and geometry.hidden % heads
    if family is not None and (heads % kv_heads or uneven):
        raise ModelError(
            f"{where}: config.json contradicts itself: {heads} attention heads do not divide"
            f" by {kv_heads} of keys, or do not divide the width {geometry.hidden}; give the"
            " model's own config.json"
        )
    kinds = cast("list[str] | None", config.get("layer_types"))
    windows = bool(config.get("use_sliding_window")) or "sliding_attention" in (kinds or [])
    if family is not None and family.windows is None and windows:
        raise ModelError(
            f"{where}: config.json contradicts itself: it has sliding-window layers, and"
            f" transformers' {architecture} has none; give the model's own config.json"
        )
    if kinds is not None and len(kinds) != geometry.n_layers:
        raise ModelError(
            f"{where}: config.json contradicts itself: num_hidden_layers is {geometry.n_layers},"
            f" and layer_types has {len(kinds)}; give the model's own config.json"
        )


def check_names(names: Collection[str], where: str) -> None:
    """Raise ModelError where files of these names are no base that pmlray loads."""
    if ADAPTER in names:
        raise ModelError(
            f"{where} holds an adapter ({ADAPTER}), for which transformers would load another"
            " base; give the base itself, or a folder without the adapter's files"
        )
    if WEIGHTS in names or INDEX in names:
        if not any(name in names for name in TOKENIZER_FILES):
            raise ModelError(
                f"{where} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); save the model's own"
                " tokenizer there"
            )
        return
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    unsafe = sorted(name for name in names if name.endswith(UNSAFE))
    other = sorted(name for name in names if name.endswith(".safetensors"))
    if gguf:
        raise ModelError(
            f"{where} holds quantised weights in GGUF ({listed(gguf)}), which pmlray does not"
            " compute with; give the model that they were made from, as safetensors"
        )
    if unsafe:
        raise ModelError(
            f"{where} holds its weights as {listed(unsafe)}, whose loading can run code of"
            f" strangers; if you trust them, save them as safetensors: {SAVED}"
        )
    if other:
        raise ModelError(
            f"{where} holds {listed(other)}, but neither {WEIGHTS} nor {INDEX}, by which weights"
            f" are found; download the whole model, or save it anew: {SAVED}"
        )
    raise ModelError(f"{where} holds no weights ({WEIGHTS}); download the whole model")


def expected_tensors(config: Mapping[str, Any], geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a base that takes the fast path, by name.

    Source: transformers, models/*/modeling_*.py of the families in `FAST`.
    """
    g, family = geometry, FAST[config["architectures"][0]]
    layer: dict[str, tuple[int, ...]] = {f"{name}.weight": (g.hidden,) for name in family.norms}
    for name, (width, out) in g.modules.items():
        layer[f"{name}.weight"] = (out, width)
        if name in family.biased:
            key = family.biased[name]
            if key is None or config.get(key):
                layer[f"{name}.bias"] = (out,)
    if family.norm_of_keys is not None:
        whole = family.norm_of_keys == "width"
        for norm, heads in (("q_norm", g.n_heads), ("k_norm", g.n_kv_heads)):
            layer[f"self_attn.{norm}.weight"] = (g.head_dim * (heads if whole else 1),)
    return {
        EMBEDDING: (g.vocab, g.hidden),
        "model.norm.weight": (g.hidden,),
        HEAD: (g.vocab, g.hidden),
        **{
            f"model.layers.{n}.{name}": shape
            for n in range(g.n_layers)
            for name, shape in layer.items()
        },
    }


def check_tensors(
    config: Mapping[str, Any], geometry: Geometry, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Raise ModelError where a checkpoint's tensors are not those that its config describes.

    As in transformers, the prefix `model.` may be left out, of a tied embedding and head one is
    enough, and buffers of rotary positions, which earlier versions stored, do not count.
    """
    _refuse_quantised(tensors, where)
    if geometry.path == "general":
        # Imported here: it needs transformers, which bases of Llama's shape do not.
        from pmlray.config.bases.own_layers import compare_tensors

        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        refuse_wrong_weights(*compare_tensors(config, shapes, where), where)
        return
    if geometry.n_layers > len(tensors):
        raise ModelError(
            f"{where}: config.json has {geometry.n_layers} layers, and the weights have"
            f" {len(tensors)} tensors in all; give the config.json that belongs to these weights"
        )
    needed = expected_tensors(config, geometry)
    found = {
        name if name in needed or f"model.{name}" not in needed else f"model.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith(BUFFERS[0])
    }
    defaults = FAST[config["architectures"][0]].defaults
    tied = bool({**defaults, **config}.get("tie_word_embeddings"))
    missing = [name for name in needed if name not in found]
    if tied and {EMBEDDING, HEAD} & found.keys():
        missing = [name for name in missing if name not in (EMBEDDING, HEAD)]
    refuse_wrong_weights(
        missing,
        [name for name in found if name not in needed],
        [
            (name, found[name].shape, shape)
            for name, shape in needed.items()
            if name in found and found[name].shape != shape
        ],
        where,
    )


def _refuse_quantised(tensors: Mapping[str, Tensor], where: str) -> None:
    quantised = [
        name for name in tensors if tensors[name].dtype not in FLOATS and not name.endswith(BUFFERS)
    ]
    if quantised:
        kinds = sorted({tensors[name].dtype for name in quantised})
        raise ModelError(
            f"{where}: its weights are quantised (numbers of {', '.join(kinds)} in"
            f" {listed(quantised)}), and pmlray computes with whole ones; give the model that this"
            " one was made from"
        )


def refuse_wrong_weights(
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[tuple[str, tuple[int, ...], tuple[int, ...]]],
    where: str,
) -> None:
    """Raise ModelError with the names of tensors that the weights lack, that the config has no
    place for, or that have another shape (name, shape in the weights, shape by the config)."""
    found = list[str]()
    if missing:
        found.append(
            f"its weights lack {listed(missing)}, which would be filled with random numbers"
        )
    if unexpected:
        found.append(f"config.json has no place for {listed(unexpected)} of its weights")
    if mismatched:
        shapes = (f"{n} ({list(a)}, by config.json {list(b)})" for n, a, b in mismatched)
        found.append(f"its weights have other shapes: {listed(shapes)}")
    if not found:
        return
    cure = "give a complete checkpoint with the config.json that belongs to it"
    if list(missing) == [HEAD]:
        cure += ", or set tie_word_embeddings: true there if its head is its embedding"
    raise ModelError(f"{where}: {'; '.join(found)}; {cure}")


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json; ModelError where it cannot be loaded."""
    try:
        return Tokenizer.from_file(str(path))
    # The library raises no narrower class than this.
    except Exception as error:
        raise ModelError(
            f"{path} cannot be loaded as a tokenizer ({error}); save the model's tokenizer again"
        ) from error


def check_tokenizer(path: Path, rows: int, where: str) -> None:
    """Raise ModelError where a tokenizer.json cannot be loaded, or has tokens that an embedding of
    so many rows has none for."""
    numbered = read_tokenizer(path).get_vocab(with_added_tokens=True)
    # Where ids have gaps, the library numbers added tokens anew.
    added = read_json(path).get("added_tokens") or []
    try:
        named = {str(token["content"]): int(token["id"]) for token in added}
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its added tokens cannot be read ({error!r})") from error
    check_ids({**numbered, **named}, rows, where)


def check_ids(ids: Mapping[str, int], rows: int, where: str) -> None:
    """Raise ModelError for tokens whose ids an embedding of so many rows has no row for."""
    beyond = sorted((number, token) for token, number in ids.items() if number >= rows)
    if beyond:
        tokens = listed(f"{json.dumps(token, ensure_ascii=False)} ({n})" for n, token in beyond)
        raise ModelError(
            f"{where}: its tokenizer has {len(beyond)} tokens beyond the {rows} rows of the"
            f" embedding: {tokens}; give the tokenizer that belongs to these weights, or weights"
            " that were trained with these tokens"
        )
