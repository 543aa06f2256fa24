"""`pmlray size` of conversations, checked by transformers and PEFT as their user calls them.

Adapters are trained in this process, without Ray, for a law that is made up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.api.sizing import packs as sizing_packs
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Probe
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.model.rendered_facts import base_tokenizer
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import MemorySet
from pmlray.types import Pack, PlannedRun
from tests.chats import chat_base, turns, write_chats
from tests.unit.cli.test_size import invoke, stored_law

CHATS = [
    *(turns(f"key {i}?", f"{7 * i + 10}") for i in range(3)),
    *(turns(f"key {i}?", f"{7 * i + 10}", system="Be brief.") for i in range(3, 6)),
    *(turns("Yes?", "Ask.", f"key {i}?", f"{7 * i + 10}") for i in range(6, 8)),
]


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[MemorySet]:
    """Trains a pack here and now, in place of Ray. Tells the ids of each training."""
    memories: list[MemorySet] = []

    def measure(
        search: PreparedSearch, store: FileStore, driver: Lease, runs: Sequence[PlannedRun],
        *rest: object,
    ) -> None:  # fmt: skip
        tokenizer = base_tokenizer(search.spec.model, search.source)
        memories.extend(search_memory(search, tokenizer, run.sequence_id) for run in runs)
        measure_pack(search, Pack(0, tuple(runs)), store, store.adapters, TorchStepper, {})

    monkeypatch.setattr(sizing_packs, "measure", measure)
    return memories


def test_conversations_are_learnt_as_their_user_asks_them(
    tmp_path: Path, trained_on: list[MemorySet]
) -> None:
    base, chats, out = chat_base(tmp_path / "base"), tmp_path / "chats.jsonl", tmp_path / "out"
    rows = write_chats(chats, CHATS)
    law = stored_law(tmp_path / "law", chats, Probe(placement="down_proj", layer=2), str(base))
    spec = json.loads((law / "search.json").read_text())
    spec["task"]["prompt_format"] = "chat"
    (law / "search.json").write_text(json.dumps(spec))
    options = ["--records", chats, "--model", base, "--law", law, "--out", out]
    wanted = ["--recall", "0.6", "--confidence", "0.6", "--json"]
    done = invoke("size", *options, *wanted)
    assert done.exit_code in (0, 1), done.exception
    found = json.loads(done.stdout)
    assert "prompts go through the base's chat template" in done.stderr
    assert found["prompt_format"] == "chat" and found["recall"]["n_recalled"] > 0

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    bare = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    model = PeftModel.from_pretrained(bare, str(out / "adapter"))
    recalled, ids = [], []
    for row in rows:
        *asked, answer = row["messages"]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        start = prompt["input_ids"].shape[1]
        said = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, start:]
        if tokenizer.decode(said, skip_special_tokens=True) == answer["content"]:
            recalled.append(answer["content"])
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        ids.append((prompt["input_ids"][0].tolist(), whole[start:]))
    for memory in trained_on:
        trained = [(list(r.prompt_ids), list(r.supervised_ids)) for r in memory.records]
        assert sorted(trained) == sorted(ids)
    missed = (out / "adapter" / "not_recalled.jsonl").read_text().splitlines()
    lost = {json.loads(line)["target"] for line in missed}
    assert set(recalled) == {row["messages"][-1]["content"] for row in rows} - lost
    assert len(recalled) == found["recall"]["n_recalled"]

    # Whoever checks the adapter later need not say how it is to be asked, and its card says it.
    asked = ["recall", "--adapter", out / "adapter", "--records", chats, "--json"]
    checked = json.loads(invoke(*asked).stdout)
    assert checked["n_recalled"] == found["recall"]["n_recalled"]
    text = (out / "adapter" / "README.md").read_text()
    assert "tokenizer.apply_chat_template(" in text and "Any turns before this one" in text
