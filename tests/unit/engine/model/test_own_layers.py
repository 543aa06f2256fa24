"""Bases of other families: what their layers have is found, and what cannot work is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.checks import check_folder
from pmlray.config.bases.geometry import Geometry, geometry_from_config
from pmlray.config.bases.models import resolve_model
from pmlray.config.prepared_search import prepare_search
from pmlray.engine.model.base_model import freeze_base, load_base_model
from pmlray.errors import INSTALL_TRAIN, ModelError, SpecError
from tests.families import GPT, SIZES, tiny_model

CPU = torch.device("cpu")
SIZED = {**SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
# Configs that can be no base, and what the refusal says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder-decoder": (
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5",
         "is_encoder_decoder": True},
        "is an encoder-decoder",
    ),
    "encoder-decoder by its class": (
        {"architectures": ["BartForCausalLM"], "model_type": "bart"}, "is an encoder-decoder"),
    "state space": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "num_hidden_layers": 2},
        "carry a state from token to token",
    ),
    "multimodal": (
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
         "vision_config": {}},
        "reads more than text",
    ),
    "its own code": (
        {"architectures": ["StrangeForCausalLM"], "model_type": "strange",
         "auto_map": {"AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM"}},
        r"auto_map\), and pmlray runs no model's own code",
    ),
    "both ways": (
        {"architectures": ["BertLMHeadModel"], "model_type": "bert", "num_hidden_layers": 2},
        "attends to later tokens too",
    ),
    "a classifier": (
        {"architectures": ["GPT2ForSequenceClassification"], "model_type": "gpt2", **GPT},
        "'GPT2ForSequenceClassification' is not supported.*GPT2LMHeadModel",
    ),
    "no sizes": (
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": "wide"},
        "cannot make GPT2LMHeadModel of its config.json",
    ),
    "no end of layers": (
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 2**30},
        "a size that no model has",
    ),
}  # fmt: skip


def geometry_of(case: str) -> Geometry:
    return geometry_from_config(tiny_model(case).config.to_dict(), case)


@pytest.fixture
def folder_of(tmp_path: Path, tiny_folder: str) -> Callable[[str], Path]:
    def save(case: str) -> Path:
        folder = tmp_path / case
        tiny_model(case, vocab=512).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tiny_folder) / name, folder / name)
        return folder

    return save


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(kind: str) -> None:
    config, message = REFUSED[kind]
    with pytest.raises(ModelError, match=message) as refused:
        geometry_from_config(config, "the base")
    assert str(refused.value).startswith("the base: ")


def test_modules_have_the_names_and_widths_of_the_familys_layers() -> None:
    gpt2 = geometry_of("gpt2")
    assert (gpt2.path, gpt2.layers_path) == ("general", "transformer.h")
    # Conv1D keeps its weight the other way round.
    assert gpt2.modules == {
        "attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128),
        "mlp.c_proj": (128, 32),
    }  # fmt: skip
    assert geometry_of("opt").layers_path == "model.decoder.layers"
    moe = geometry_of("qwen2-moe")
    assert [*moe.modules][4:] == [f"mlp.shared_expert.{n}_proj" for n in ("gate", "up", "down")]
    for named in ("experts", "experts.down_proj", "mlp.experts.gate_up_proj"):
        assert "the experts', one tensor" in str(moe.refusal(named))
    assert "one value" in str(moe.refusal("shared_expert_gate"))
    assert "only layers 0 have it" in str(geometry_of("deepseek-v3").refusal("mlp.up_proj"))


@pytest.mark.parametrize(
    ("case", "override", "message"),
    [
        ("mixtral", "adapter={target_modules: [experts]}", "the experts', one tensor"),
        ("gpt2", "adapter={target_modules: [q_proj]}", r"no q_proj; they have attn\.c_attn, "),
        ("gpt2", "probe={placement: down_proj, layer: 0}", r"linear mlp\.down_proj; .*mlp\.c_fc"),
        ("opt", "probe={placement: mlp, layer: 0}", "have no mlp; they have self_attn"),
        ("opt", "adapter={target_modules: mlp_block}", "have no mlp; they have self_attn"),
    ],
)  # fmt: skip
def test_validate_names_what_a_base_lacks(
    case: str, override: str, message: str, folder_of: Callable[[str], Path], search_file: Path
) -> None:
    overrides = [f"model.id={folder_of(case)}", override]
    if override.startswith("adapter"):
        overrides.append("probe=null")
    with pytest.raises(SpecError, match=message):
        prepare_search(search_file, overrides)


def test_a_checkpoint_that_is_not_the_configs_is_refused(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("mixtral")
    file = folder / "model.safetensors"
    whole = load_file(file)
    check_folder(folder)
    name = "model.layers.0.self_attn.k_proj.weight"
    for changed, message in (
        ({k: v for k, v in whole.items() if k != name}, rf"lack {name}, "),
        ({**whole, "model.layers.2.input_layernorm.weight": torch.ones(32)}, r"no place for .*\.2"),
        ({**whole, name: torch.ones(4, 4)}, rf"other shapes: {name} \(\[4, 4\]"),
        ({**whole, name: whole[name].to(torch.int8)}, r"quantised \(numbers of I8"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ModelError, match=message):
            check_folder(folder)


def test_a_model_that_attends_both_ways_is_found_out_when_it_is_loaded() -> None:
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.attn.is_causal = False
    with pytest.raises(ModelError, match="attends to later tokens too"):
        freeze_base(model, None, (Placement((0,), ("attn.c_attn",)),), CPU)


def test_a_module_that_the_forward_passes_by_is_found_out_when_it_is_loaded() -> None:
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.forward = lambda x: x
    with pytest.raises(ModelError, match=r"does not call mlp\.c_fc of layer 1"):
        freeze_base(model, None, (Placement((0, 1), ("mlp.c_fc",)),), CPU)


def test_logits_made_after_the_head_are_found_out_when_it_is_loaded() -> None:
    model = tiny_model("gpt2")
    own = model.forward
    model.forward = lambda *args, **options: _shifted(own(*args, **options), options["input_ids"])
    with pytest.raises(ModelError, match="does more between its layers and its logits"):
        freeze_base(model, None, (Placement((0,), ("mlp.c_fc",)),), CPU)


def _shifted(output: Any, ids: torch.Tensor) -> Any:
    output.logits = output.logits + 10.0 * ids[..., None]
    return output


def test_a_folder_of_another_family_is_loaded(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("gpt2")
    source = resolve_model(str(folder), None)
    placement = Placement((1,), ("attn.c_proj",))
    base = load_base_model(str(folder), source, None, "float32", (placement,), CPU)
    ids = torch.tensor([[5, 7, 11, 13]])
    plain: Any = AutoModelForCausalLM.from_pretrained(str(folder))
    assert torch.equal(base.model(input_ids=ids).logits, plain(input_ids=ids).logits)


WITHOUT = """
import json, sys
from pathlib import Path
sys.modules |= dict.fromkeys(("torch", "transformers"))  # As if they were not installed.
from pmlray.config.bases.geometry import geometry_from_config
from pmlray.errors import ModelError
fast, general = json.loads(sys.argv[1])
print(geometry_from_config(fast, "fast").path)
try:
    geometry_from_config(general, "general")
except ModelError as error:
    print(error)
"""


def test_only_other_families_need_transformers() -> None:
    gpt2 = {**GPT, "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps([SIZED, gpt2])],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    path, refusal = ran.stdout.splitlines()
    assert path == "fast"
    assert "found by transformers, which is not installed" in refusal and INSTALL_TRAIN in refusal
