"""Bases that are not what they seem are refused before anything starts, by names and numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pmlray.config.bases.checks import check_folder
from pmlray.config.bases.models import KNOWN_MODELS, TINY, pulled_folder, resolve_model
from pmlray.config.prepared_search import prepare_search
from pmlray.errors import ModelError

Weights = dict[str, np.ndarray]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    copy = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), copy)
    return copy


def edit_json(path: Path, **changed: Any) -> None:
    stored = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(stored | changed), "utf-8")


def edit_weights(base: Path, change: Callable[[Weights], object]) -> None:
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, base / "model.safetensors", {"format": "pt"})


def add_token(base: Path, token_id: int, content: str = "<new>") -> None:
    stored = json.loads((base / "tokenizer.json").read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special", "normalized"), False)
    edit_json(
        base / "tokenizer.json",
        added_tokens=[*stored["added_tokens"], {"id": token_id, "content": content, **flags}],
    )


def shard(base: Path, n: int = 3) -> dict[str, str]:
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    files = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    where = {name: files[i % n] for i, name in enumerate(weights)}
    for file in files:
        own = {name: array for name, array in weights.items() if where[name] == file}
        save_file(own, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return where


def config_of(**changed: Any) -> Callable[[Path], None]:
    return lambda base: edit_json(base / "config.json", **changed)


def more(tensors: Weights) -> Callable[[Path], None]:
    return lambda base: edit_weights(base, lambda weights: weights.update(tensors))


def without(*names: str) -> Callable[[Path], None]:
    return lambda base: edit_weights(base, lambda weights: [weights.pop(name) for name in names])


def renamed(name: str) -> Callable[[Path], object]:
    return lambda base: (base / "model.safetensors").rename(base / name)


def cut(base: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-1000])


def without_shard(base: Path) -> None:
    shard(base)
    (base / "model-00002-of-00003.safetensors").unlink()


def twice(base: Path) -> None:
    shard(base)
    names = load_file(base / "model-00001-of-00003.safetensors")
    other = base / "model-00002-of-00003.safetensors"
    save_file(load_file(other) | names, other, {"format": "pt"})


def out_of_folder(base: Path) -> None:
    where = shard(base)
    index = {name: f"../{file}" for name, file in where.items()}
    edit_json(base / "model.safetensors.index.json", weight_map=index)


def neither_of_two_tied(base: Path) -> None:
    edit_json(base / "config.json", tie_word_embeddings=True)
    without("lm_head.weight", "model.embed_tokens.weight")(base)


LAYER4 = {"model.layers.4.input_layernorm.weight": np.ones(64, np.float32)}
SHORT = {"model.norm.weight": np.ones(32, np.float32)}
INT8 = {"model.layers.0.mlp.up_proj.weight": np.ones((128, 64), np.int8)}
ADAPTER = "adapter_config.json"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no head": (
        without("lm_head.weight"),
        r"lack lm_head\.weight, .*random numbers; .*tie_word_embeddings: true",
    ),
    "no tensor": (
        without("model.layers.2.self_attn.v_proj.weight"),
        r"lack model\.layers\.2\.self_attn\.v_proj\.weight, ",
    ),
    "neither of two tied": (
        neither_of_two_tied,
        r"lack model\.embed_tokens\.weight, lm_head\.weight",
    ),
    "a layer more": (
        more(LAYER4),
        r"no place for model\.layers\.4\.input_layernorm\.weight",
    ),
    "a layer fewer in the config": (
        config_of(num_hidden_layers=3),
        r"no place for model\.layers\.3\..* and 1 more",
    ),
    "more layers in the config": (config_of(num_hidden_layers=9), r"lack model\.layers\.4\."),
    "no end of layers": (config_of(num_hidden_layers=2**30), "1073741824 layers"),
    "a bias": (config_of(attention_bias=True), r"lack .*q_proj\.bias"),
    "another family": (
        config_of(architectures=["Qwen3ForCausalLM"], model_type="qwen3"),
        r"lack model\.layers\.0\.self_attn\.q_norm\.weight",
    ),
    "another shape": (
        more(SHORT),
        r"model\.norm\.weight \(\[32\], by config\.json \[64\]\)",
    ),
    "another vocabulary": (config_of(vocab_size=600), r"embed_tokens\.weight .*512.*, by .*600"),
    "whole numbers": (more(INT8), r"quantised \(numbers of I8 in"),
    "bitsandbytes": (
        config_of(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(quantization_config: bitsandbytes\).*give the model that",
    ),
    "gptq": (config_of(quantization_config={"quant_method": "gptq"}), "quantised .*gptq"),
    "compressed": (config_of(compression_config={"format": "x"}), "compression_config: unknown"),
    "another model_type": (config_of(model_type="qwen3"), "contradicts itself: model_type 'qwen3'"),
    "no model_type": (config_of(model_type=None), "contradicts itself: model_type None"),
    "uneven heads": (config_of(num_attention_heads=5), "contradicts itself: 5 attention heads"),
    "layer types": (config_of(layer_types=["full_attention"]), "layer_types has 1"),
    "windows": (config_of(use_sliding_window=True), "sliding-window"),
    "pickles": (renamed("pytorch_model.bin"), r"pytorch_model\.bin, whose loading can run code"),
    "gguf": (renamed("model-Q4_0.gguf"), r"GGUF \(model-Q4_0\.gguf\)"),
    "another name": (renamed("weights.safetensors"), r"neither model\.safetensors nor"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), r"holds no weights"),
    "an adapter": (lambda b: (b / ADAPTER).write_text("{}"), "holds an adapter"),
    "no tokenizer": (lambda b: (b / "tokenizer.json").unlink(), "holds no tokenizer"),
    "cut short": (cut, r"no whole safetensors file \(it has"),
    "no header": (
        lambda b: (b / "model.safetensors").write_bytes(b"\xff" * 64),
        "no whole safetensors file",
    ),
    "a shard missing": (without_shard, r"of which model-00002-of-00003\.safetensors are missing"),
    "a tensor in two shards": (twice, r"stands in model-00001.* and in model-00002"),
    "a shard elsewhere": (out_of_folder, "no files of its own folder"),
    "an added token": (
        lambda b: add_token(b, 512, "<|user|>"),
        r'1 tokens beyond the 512 rows .*"<\|user\|>" \(512\)',
    ),
    "many added tokens": (
        lambda b: [add_token(b, 258 + i, f"<x{i}>") for i in range(300)],
        r'46 tokens beyond the 512 rows of the embedding: "<x254>" \(512\).* and 38 more',
    ),
    "no tokenizer at all": (
        lambda b: (b / "tokenizer.json").write_text("{}"),
        "cannot be loaded as a tokenizer",
    ),
    "no config": (lambda b: (b / "config.json").unlink(), r"holds no config\.json"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_base_is_refused_by_its_headers(kind: str, base: Path) -> None:
    change, message = WRONG[kind]
    change(base)
    with pytest.raises(ModelError, match=message) as refused:
        resolve_model(str(base), None)
    assert "\n" not in str(refused.value)


def test_a_search_of_a_wrong_base_is_refused(base: Path, search_file: Path) -> None:
    prepare_search(search_file, [f"model.id={base}"])
    without("lm_head.weight")(base)
    with pytest.raises(ModelError, match="lm_head"):
        prepare_search(search_file, [f"model.id={base}"])


def test_right_bases_pass(base: Path) -> None:
    assert check_folder(base) == KNOWN_MODELS[TINY]
    # Buffers that earlier versions of transformers stored, and names without the prefix.
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    more(buffer)(base)
    assert check_folder(base) == KNOWN_MODELS[TINY]
    shard(base)
    assert check_folder(base) == KNOWN_MODELS[TINY]


def test_of_a_tied_head_and_embedding_one_is_enough(base: Path) -> None:
    edit_json(base / "config.json", tie_word_embeddings=True)
    check_folder(base)
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    without("lm_head.weight")(base)
    check_folder(base)
    more({"lm_head.weight": head})(base)
    without("model.embed_tokens.weight")(base)
    check_folder(base)


def test_a_pulled_base_is_checked_too(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMLRAY_CACHE", str(base.parent))
    (base.parent / "models").mkdir()
    base.rename(base.parent / "models" / TINY)
    assert resolve_model(TINY, None).folder is not None
    cut(base.parent / "models" / TINY)
    with pytest.raises(ModelError, match="no whole safetensors file"):
        resolve_model(TINY, None)


def test_checking_loads_no_torch(base: Path) -> None:
    code = (
        "import sys; from pmlray.config.bases.models import resolve_model;"
        f"resolve_model({str(base)!r}, None);"
        "sys.exit(sorted({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
