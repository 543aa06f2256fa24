"""A base is loaded whole or not at all, whatever its headers told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from pmlray.config.bases.checks import EMBEDDING, HEAD, check_folder
from pmlray.config.bases.models import resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine import calibrate_apart
from pmlray.engine.model import checkpoint
from pmlray.engine.model.base_model import load_base_model
from pmlray.errors import ModelError
from pmlray.types import DesignPoint, Pack

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}


@pytest.fixture
def base(tmp_path: Path, tiny_folder: str) -> Path:
    copy = tmp_path / "base"
    shutil.copytree(tiny_folder, copy)
    return copy


def edit_json(path: Path, **changed: Any) -> None:
    stored = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(stored | changed), "utf-8")


def edit_weights(base: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, base / "model.safetensors", {"format": "pt"})


def load(base: Path) -> Any:
    source = resolve_model(str(base), None)
    device = torch.device("cpu")
    return load_base_model(
        str(base), source, None, "float32", (Probe(layer=1).to_placement(),), device
    )


UP = "model.layers.4.mlp.up_proj.weight"
BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (
        lambda b: edit_weights(b, lambda w: w.pop("lm_head.weight")),
        r"lack lm_head\.weight, which would be filled",
    ),
    "a layer more": (
        lambda b: edit_weights(b, lambda w: w.update({UP: torch.zeros(128, 64)})),
        rf"no place for {UP}",
    ),
    "another shape": (
        lambda b: edit_weights(b, lambda w: w.update({"model.norm.weight": torch.ones(32)})),
        r"model\.norm\.weight \(\[32\], by config\.json \[64\]\)",
    ),
    "cut short": (
        lambda b: (b / "model.safetensors").write_bytes(b"\0" * 99),
        "cannot load the base model",
    ),
    "quantised": (
        lambda b: edit_json(b / "config.json", quantization_config=BITS),
        "cannot load the base model .*bitsandbytes",
    ),
    "heads that do not divide": (
        lambda b: edit_json(b / "config.json", num_attention_heads=5),
        "cannot load .*not a multiple",
    ),
    "words for numbers": (
        lambda b: edit_json(b / "config.json", num_attention_heads="four"),
        "cannot load .*num_attention_heads",
    ),
    "no tokenizer": (
        lambda b: (b / "tokenizer.json").unlink(),
        "cannot load the tokenizer",
    ),
    "an empty tokenizer": (
        lambda b: (b / "tokenizer.json").write_text("{}"),
        "cannot load the tokenizer",
    ),
    "a wrong tokenizer": (
        lambda b: edit_json(b / "tokenizer.json", model={"type": "XYZ"}),
        "cannot load the tokenizer",
    ),
    "a broken tokenizer config": (
        lambda b: (b / "tokenizer_config.json").write_text("{"),
        "cannot load the tokenizer",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_base_with_hidden_faults_is_refused_when_it_is_loaded(
    kind: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model(str(base), None)
    # As for files that no header could be read of.
    monkeypatch.setattr(checkpoint, "check_folder", lambda folder: source.geometry)
    change, message = WRONG[kind]
    change(base)
    with pytest.raises(ModelError, match=message) as refused:
        load_base_model(
            str(base),
            source,
            None,
            "float32",
            (Probe(layer=1).to_placement(),),
            torch.device("cpu"),
        )
    assert "\n" not in str(refused.value)


def test_headers_are_checked_where_the_base_is_loaded(base: Path) -> None:
    source = resolve_model(str(base), None)
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "another"}')
    with pytest.raises(ModelError, match="holds an adapter"):
        checkpoint.folder_of(str(base), source, None)


def test_tokens_that_only_transformers_adds_need_rows_too(base: Path) -> None:
    # tokenizer.json has 258 tokens, and transformers gives this one the next number.
    weights = load_file(base / "model.safetensors")
    rows = {name: weights[name][:258].clone() for name in (HEAD, EMBEDDING)}
    edit_weights(base, lambda w: w.update(rows))
    edit_json(base / "config.json", vocab_size=258)
    load(base)
    edit_json(base / "tokenizer_config.json", pad_token="[PAD]")
    with pytest.raises(ModelError, match=r'1 tokens beyond the 258 rows .*"\[PAD\]" \(258\)'):
        load(base)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "biased"])
def test_what_transformers_saves_passes(
    kind: str, shards: str, tied: bool, tmp_path: Path, tiny_folder: str
) -> None:
    torch.manual_seed(0)
    if kind == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=tied))
    else:
        bias: dict[str, Any] = {}
        if kind == "biased":
            bias = {"attention_bias": True, "mlp_bias": True}
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **bias, tie_word_embeddings=tied))
    folder = tmp_path / "saved"
    model.save_pretrained(str(folder), max_shard_size=shards)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_folder) / name, folder / name)
    n_files = len(list(folder.glob("*.safetensors")))
    assert (n_files > 1) == (shards == "20KB")
    check_folder(folder)
    loaded = load(folder)
    values = checkpoint.load_weights("saved", folder, "float32").state_dict()
    assert values.keys() == model.state_dict().keys()
    assert all(torch.equal(values[name], own) for name, own in model.state_dict().items())
    assert (loaded.head_weight is loaded.model.model.embed_tokens.weight) == tied


def test_steps_on_a_base_that_cannot_be_loaded_are_refused(
    base: Path, make_search: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: another one would import torch for seconds.
    def run_here(_command: Any, input: bytes, **_options: Any) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(input)))
        calibrate_apart.main()

    monkeypatch.setattr(calibrate_apart.subprocess, "run", run_here)
    search = make_search(f"model.id={base}")
    (base / "tokenizer_config.json").write_text("{")
    pack = Pack(0, (search.plan_run(DesignPoint(1, 16, 100), "sft", 0, 0, "law"),))
    gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        calibrate_apart.time_steps_apart(search, pack, gpu, threads, 1.0)
