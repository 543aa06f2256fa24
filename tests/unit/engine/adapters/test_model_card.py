"""Adapters' cards as the Hugging Face hub reads them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.adapters.model_card import loading
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.model_card import write_card
from pmlray.engine.model.prompts import render_prompt
from pmlray.engine.model.pull import pull_model
from tests.fakes import observe


@pytest.mark.parametrize(("placement", "library"), [("down_proj", "peft"), ("mlp", "pmlray")])
def test_the_hub_reads_base_library_and_tags(
    make_search: Callable[..., PreparedSearch], tmp_path: Path, placement: str, library: str
) -> None:
    search = make_search(f"probe.placement={placement}")
    run = search.plan_run(search.spec.space.points()[0], "sft", 1, 0, "law")
    measured = observe(run, 0, 0, 0.0, 1e-3)
    write_card(tmp_path, search, measured)
    card = ModelCard.load(tmp_path / "README.md")
    head = card.data.to_dict()
    assert head["base_model"] == search.spec.model.id and head["library_name"] == library
    assert head["base_model_relation"] == "adapter" and head["pipeline_tag"] == "text-generation"
    assert {"lora", "long_context"} <= set(head["tags"])
    assert f"Adapter of rank {run.point.lora_rank} " in card.text
    assert f"| {measured.final_loss:.4f} |" in card.text and run.run_key in card.text
    assert ("PeftModel.from_pretrained" in card.text) == (library == "peft")


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{{ date_string }}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_code_of_a_card_makes_the_prompt_that_was_trained(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(pull_model(TINY)))
    tokenizer.chat_template = TEMPLATE
    search = make_search()
    spec = search.spec
    for prompt_format in ("chat", "plain"):
        task = spec.task.model_copy(update={"prompt_format": prompt_format})
        own = spec.model_copy(update={"task": task})
        code = loading(own, search.source.geometry, search.placement, 1, 7)
        part = code[code.index("turns = " if prompt_format == "chat" else "prompt = ") :]
        names = {"tokenizer": tokenizer, "query": "What is it?"}
        exec(part[: part.index("answer = ")], names)
        wanted = render_prompt(tokenizer, "What is it?", prompt_format)
        assert names["prompt"]["input_ids"][0].tolist() == wanted


def test_the_code_of_a_card_of_conversations_adds_no_system_turn(
    make_search: Callable[..., PreparedSearch],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(pull_model(TINY)))
    tokenizer.chat_template = TEMPLATE
    search = make_search("task.prompt_format=chat")
    code = loading(search.spec, search.source.geometry, search.placement, 1, 7, True)
    part = code[code.index("turns = ") :]
    names = {"tokenizer": tokenizer, "query": "What is it?"}
    exec(part[: part.index("answer = ")], names)
    wanted = render_prompt(tokenizer, (("user", "What is it?"),), "chat")
    assert names["prompt"]["input_ids"][0].tolist() == wanted


def code_of(search: PreparedSearch) -> str:
    return loading(search.spec, search.source.geometry, search.placement, 1, None)


def test_a_card_names_the_base_by_its_hub_id_or_by_a_folder_and_its_origin(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    on_hub = code_of(make_search("model.id=smollm2-135m"))
    assert 'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in on_hub
    folder = tmp_path / "mine"
    shutil.copytree(pull_model(TINY), folder)
    ours = code_of(make_search(f"model.id={folder}"))
    assert f'from_pretrained("{folder}")' in ours
    assert resolve_model(str(folder), None).identity in ours
    pinned = {"id": "Qwen/Qwen3-8B", "revision": "0123abc", "dtype": "bfloat16"}
    search = make_search()
    spec = search.spec.model_copy(update={"model": Model(**pinned)})
    there = loading(spec, search.source.geometry, search.placement, 1, None)
    assert 'from_pretrained("Qwen/Qwen3-8B", revision="0123abc", dtype="bfloat16")' in there
