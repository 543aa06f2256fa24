"""Adapters of others answer as under plain PEFT, and nothing of them is left out in silence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import resolve_model
from pmlray.engine.adapters.foreign_adapter import ForeignAdapter
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.evaluation.greedy_decode import decode_records
from pmlray.engine.model.base_model import BaseModel
from pmlray.errors import ModelError
from pmlray.memory import Record
from tests.unit.engine.conftest import random_record

RECORDS = (
    random_record(4, 0, prompt=5), random_record(6, 1, prompt=3), random_record(5, 2, prompt=5),
)  # fmt: skip
# Answers are compared as far as their targets go.
NO_END: frozenset[int] = frozenset()
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN: dict[str, Any] = {"target_modules": ["down_proj"], "layers_to_transform": [2]}
SHOWN = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 6}
KINDS: dict[str, dict[str, Any]] = {
    "plain": DOWN,
    "rslora": {**DOWN, "use_rslora": True},
    "dora": {**DOWN, "use_dora": True},
    "alpha_pattern": {**DOWN, "alpha_pattern": {"down_proj": 24}},
    "rank_pattern": {
        "target_modules": ["down_proj", "q_proj"], "layers_to_transform": [1],
        "rank_pattern": {"down_proj": 5},
    },
    "lora_bias": {**DOWN, "lora_bias": True},
    "lm_head_saved": {**DOWN, "modules_to_save": ["lm_head"]},
    "all_linear": {"target_modules": "all-linear"},
    "query_value": {"target_modules": ["q_proj", "v_proj"]},
    "regex": {"target_modules": r".*\.layers\.[13]\.mlp\.(up|gate)_proj"},
    "full_name": {"target_modules": ["model.layers.3.self_attn.o_proj"]},
    "two_layers": {**DOWN, "layers_to_transform": [1, 2]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
    "tokens": {**DOWN, "trainable_token_indices": {"embed_tokens": [7, 9, 60]}},
}  # fmt: skip


def base_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save(model: Any, config: peft.PeftConfig, folder: Path, tiny_folder: str) -> None:
    """Write an adapter with random weights, large enough to change what is decoded."""
    config.base_model_name_or_path = tiny_folder
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained(str(folder))


def lora(folder: Path, tiny_folder: str, **settings: Any) -> Path:
    save(base_of(tiny_folder), peft.LoraConfig(**{**SHOWN, **settings}), folder, tiny_folder)
    return folder


def by_hand(model: Any, record: Record) -> tuple[int, ...]:
    """One token at a time, without a cache."""
    ids = list(record.prompt_ids)
    for _ in record.target_ids:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(record.prompt_ids) :])


def load(folder: Path, tiny_folder: str) -> tuple[Any, BaseModel]:
    adapter = read_adapter(folder)
    source = resolve_model(tiny_folder, None)
    model = Model(id=tiny_folder, dtype="float32")
    return adapter, adapter.load_base(model, source, torch.device("cpu"))


def answers(folder: Path, tiny_folder: str) -> list[tuple[int, ...]]:
    adapter, base = load(folder, tiny_folder)
    found = decode_records(base, adapter, RECORDS, NO_END)
    return [r.answer_ids[: len(r.record.target_ids)] for r in found]


def by_peft(model: Any, folder: Path) -> list[tuple[int, ...]]:
    adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    return [by_hand(adapted, r) for r in RECORDS]


@pytest.fixture(scope="module")
def bare(tiny_folder: str) -> list[tuple[int, ...]]:
    model = base_of(tiny_folder)
    return [by_hand(model, r) for r in RECORDS]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_as_peft_does(
    kind: str, tiny_folder: str, tmp_path: Path, bare: list[tuple[int, ...]]
) -> None:
    folder = lora(tmp_path, tiny_folder, **KINDS[kind])
    found = answers(folder, tiny_folder)
    assert found == by_peft(base_of(tiny_folder), folder)
    assert found != bare
    ours = SiteAdapter if kind in ("plain", "rslora") else ForeignAdapter
    assert isinstance(read_adapter(folder), ours)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
        peft.LoKrConfig(task_type="CAUSAL_LM", r=4, alpha=8, target_modules=["down_proj"]),
    ],
    ids=["ia3", "lokr"],
)  # fmt: skip
def test_other_methods_in_the_layers_answer_as_peft_does(
    config: peft.PeftConfig, tiny_folder: str, tmp_path: Path, bare: list[tuple[int, ...]]
) -> None:
    save(base_of(tiny_folder), copy.deepcopy(config), tmp_path, tiny_folder)
    found = answers(tmp_path, tiny_folder)
    assert found == by_peft(base_of(tiny_folder), tmp_path) and found != bare


@pytest.mark.parametrize("kind", ["dora", "lm_head_saved", "pissa", "added"])
def test_the_base_is_as_before_afterwards(kind: str, tiny_folder: str, tmp_path: Path) -> None:
    if kind == "added":
        added_tokens(tmp_path, tiny_folder)
    else:
        lora(tmp_path, tiny_folder, **KINDS.get(kind, {**DOWN, "init_lora_weights": "pissa"}))
    adapter, base = load(tmp_path, tiny_folder)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    modules = [name for name, _ in base.model.named_modules()]
    first = decode_records(base, adapter, RECORDS, NO_END)
    assert [name for name, _ in base.model.named_modules()] == modules
    for name, weight in base.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    again = decode_records(base, adapter, RECORDS, NO_END)
    assert [r.answer_ids for r in first] == [r.answer_ids for r in again]


TOKENS = ["<fact>", "<end fact>"]


def added_tokens(folder: Path, tiny_folder: str, **settings: Any) -> tuple[int, ...]:
    """An adapter with a tokenizer of its own, and the embeddings of what that adds."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = base_of(tiny_folder)
    rows = model.config.vocab_size
    tokenizer.add_tokens([f"<more {i}>" for i in range(rows - len(tokenizer))] + TOKENS)
    model.resize_token_embeddings(len(tokenizer))
    save(model, peft.LoraConfig(**{**SHOWN, **DOWN, **settings}), folder, tiny_folder)
    tokenizer.save_pretrained(str(folder))
    return tuple(range(rows, len(tokenizer)))


@pytest.mark.parametrize("some", [False, True])
def test_added_tokens_come_with_the_adapter(some: bool, tiny_folder: str, tmp_path: Path) -> None:
    more = {"trainable_token_indices": {"embed_tokens": [512, 513]}} if some else {}
    new = added_tokens(tmp_path, tiny_folder, **more)
    assert new == (512, 513)
    adapter, base = load(tmp_path, tiny_folder)
    assert base.tokenizer.convert_ids_to_tokens(list(new)) == TOKENS
    record = Record((5, *new, 9), (1, 2, 3, 4))
    (found,) = decode_records(base, adapter, [record], NO_END)
    theirs = base_of(tiny_folder)
    theirs.resize_token_embeddings(new[-1] + 1)
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path))
    assert found.answer_ids[:4] == by_hand(theirs, record)


def test_added_tokens_without_embeddings_are_refused(tiny_folder: str, tmp_path: Path) -> None:
    added_tokens(tmp_path, tiny_folder, trainable_token_indices={"embed_tokens": [512]})
    with pytest.raises(ModelError, match="lack the embeddings of its tokenizer's '<end fact>'"):
        load(tmp_path, tiny_folder)


def test_a_tensor_that_the_model_has_no_place_for_is_refused(
    tiny_folder: str, tmp_path: Path
) -> None:
    lora(tmp_path, tiny_folder, **DOWN)
    tensors = load_file(tmp_path / WEIGHTS)
    extra = "base_model.model.model.layers.3.mlp.down_proj.lora_A.weight"
    save_file({**tensors, extra: torch.ones(3, 128)}, tmp_path / WEIGHTS)
    adapter, base = load(tmp_path, tiny_folder)
    with pytest.raises(ModelError, match=r"no base_model.*layers\.3\.mlp\.down_proj\.lora_A"):
        decode_records(base, adapter, RECORDS, NO_END)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("two_layers", "layers.1.mlp.down_proj.lora_B"), ("dora", "lora_magnitude_vector"),
     ("lora_bias", "lora_B.bias"), ("lm_head_saved", "lm_head.weight")],
)  # fmt: skip
def test_a_missing_tensor_is_refused(
    kind: str, lost: str, tiny_folder: str, tmp_path: Path
) -> None:
    lora(tmp_path, tiny_folder, **KINDS[kind])
    tensors = load_file(tmp_path / WEIGHTS)
    left = {name: values for name, values in tensors.items() if lost not in name}
    assert len(left) == len(tensors) - 1
    save_file(left, tmp_path / WEIGHTS)
    adapter, base = load(tmp_path, tiny_folder)
    with pytest.raises(ModelError, match=r"lack .*" + lost.rpartition(".")[0]):
        decode_records(base, adapter, RECORDS, NO_END)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_modules": ["down_proj", "query_key_value"]}, "'query_key_value'"),
        ({"layers_to_transform": [2, 9]}, "layer 9"),
        ({"alpha_pattern": {"up_proj": 3}}, "alpha_pattern.*up_proj"),
        ({"exclude_modules": ["wqkv"]}, "wqkv"),
        ({"modules_to_save": ["score"]}, "'score' of modules_to_save"),
        ({"target_modules": ["up_proj"]}, "up_proj"),
        ({"r": 4}, "size mismatch"),
    ],
)
def test_a_config_that_the_model_does_not_answer_to_is_refused(
    changes: dict[str, Any], says: str, tiny_folder: str, tmp_path: Path
) -> None:
    lora(tmp_path, tiny_folder, **DOWN)
    edit(tmp_path, **changes)
    adapter, base = load(tmp_path, tiny_folder)
    with pytest.raises(ModelError, match=says):
        decode_records(base, adapter, RECORDS, NO_END)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_future": 3}, "use_future"),
        ({"runtime_config": {}}, "runtime_config"),
        ({"peft_type": "FUTURE"}, "FUTURE"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
    ],
)
def test_a_config_that_peft_would_not_follow_is_refused_at_once(
    changes: dict[str, Any], says: str, tiny_folder: str, tmp_path: Path
) -> None:
    lora(tmp_path, tiny_folder, **DOWN)
    edit(tmp_path, **changes)
    with pytest.raises(ModelError, match=says):
        read_adapter(tmp_path)


def test_prompt_tuning_is_refused_by_its_name(tiny_folder: str, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    save(base_of(tiny_folder), config, tmp_path, tiny_folder)
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        read_adapter(tmp_path)


def test_pickled_weights_are_refused_and_the_cure_works(
    tiny_folder: str, tmp_path: Path, bare: list[tuple[int, ...]]
) -> None:
    lora(tmp_path, tiny_folder, **DOWN)
    (tmp_path / WEIGHTS).rename(tmp_path / "kept")
    tensors = load_file(tmp_path / "kept")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="is a pickle") as refused:
        read_adapter(tmp_path)
    code = str(refused.value).split('python -c "')[1].rstrip('"')
    exec(code, {})
    assert answers(tmp_path, tiny_folder) != bare


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
