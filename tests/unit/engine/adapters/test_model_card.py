"""Adapters' cards as the Hugging Face hub reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.model_card import write_card
from tests.fakes import observe


@pytest.mark.parametrize(("placement", "library"), [("down_proj", "peft"), ("mlp", "pmlray")])
def test_the_hub_reads_base_library_and_tags(
    make_search: Callable[..., PreparedSearch], tmp_path: Path, placement: str, library: str
) -> None:
    search = make_search(f"probe.placement={placement}")
    run = search.plan_run(search.spec.space.points()[0], "sft", 1, 0, "law")
    measured = observe(run, 0, 0, 0.0, 1e-3)
    write_card(tmp_path, search.spec, measured)
    card = ModelCard.load(tmp_path / "README.md")
    head = card.data.to_dict()
    assert head["base_model"] == search.spec.model.id and head["library_name"] == library
    assert head["base_model_relation"] == "adapter" and head["pipeline_tag"] == "text-generation"
    assert {"lora", "long_context"} <= set(head["tags"])
    assert f"Adapter of rank {run.point.lora_rank} " in card.text
    assert f"| {measured.final_loss:.4f} |" in card.text and run.run_key in card.text
    assert ("PeftModel.from_pretrained" in card.text) == (library == "peft")
