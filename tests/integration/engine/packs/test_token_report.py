"""Single tokens under the base model, and a run moved to another layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.token_report import at_layer, measure_moved, trace_tokens
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import DataError, ModelError
from pmlray.memory import build_memory
from pmlray.types import DesignPoint, Observation, Pack
from tests.fakes import observe

PHONEBOOK = (
    "task={kind: phonebook, prompt_format: plain}",
    "space={lora_rank: [2, 4], seq_len: [30], train_steps: [24]}",
    "design.n_initial=2",
    "recipe.batch_size=2",
    "memft=null",
    "evaluate={control_tokens: 0, generate_max_tokens: 0}",
)


@pytest.fixture
def search(make_search: Callable[..., PreparedSearch], tiny_folder: str) -> PreparedSearch:
    return make_search(*PHONEBOOK)


def measured(search: PreparedSearch, folder: Path) -> tuple[Observation, ...]:
    store = FileStore(folder)
    runs = tuple(
        search.plan_run(DesignPoint(rank, 30, 24), "sft", q, 0, "law")
        for rank in (2, 4)
        for q in (0, 1)
    )
    measure_pack(search, Pack(0, runs), store, store.adapters, TorchStepper, {})
    return store.observations()


def test_tokens_are_those_of_the_full_model(
    search: PreparedSearch, tmp_path: Path, tiny: Callable[..., BaseModel]
) -> None:
    traced = trace_tokens(search, measured(search, tmp_path))
    base = tiny(layer=1)
    assert set(traced) == {0, 1}
    tokenizer = base.tokenizer.backend_tokenizer
    memory = build_memory(
        search.task, 1, 30, tokenizer, lambda text: list(base.tokenizer(text)["input_ids"])
    )
    p, norms = [], []
    for record in memory.records:
        ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
        with torch.no_grad():
            out = base.model(ids, output_hidden_states=True)
        behind = slice(len(record.prompt_ids) - 1, -1)
        chances = out.logits[0, behind].softmax(dim=-1)
        p += [float(chances[i, token]) for i, token in enumerate(record.target_ids)]
        norms += out.hidden_states[2][0, behind].norm(dim=-1).tolist()
    tokens = traced[1]
    assert [t.token_id for t in tokens] == [i for r in memory.records for i in r.target_ids]
    assert [(t.record, t.place) for t in tokens] == [(r, i) for r in range(3) for i in range(10)]
    assert "".join(t.text for t in tokens[:10]).isdigit()
    assert [t.base_p for t in tokens] == pytest.approx(p, rel=1e-4)
    assert [t.norm for t in tokens] == pytest.approx(norms, rel=1e-4)
    ratios = sorted(t.norm_ratio for t in tokens)
    assert ratios[14] <= 1.0 <= ratios[15]


def test_another_text_is_refused(search: PreparedSearch, tmp_path: Path) -> None:
    first, *_ = measured(search, tmp_path)
    other = replace(first, provenance={**first.provenance, "content_hash": "0" * 16})
    with pytest.raises(DataError, match="memorised another text"):
        trace_tokens(search, [other])


def test_only_the_layer_moves(search: PreparedSearch, tmp_path: Path) -> None:
    own, *_ = measured(search, tmp_path / "own")
    there = FileStore(tmp_path / "there")
    # At its own layer the run comes out again, though it trains alone now.
    same = measure_moved(at_layer(search, own, 1), own, there, there.adapters)
    assert same.run_key == own.run_key
    assert same.token_p == pytest.approx(own.token_p, rel=1e-4)
    moved = measure_moved(at_layer(search, own, 0), own, there, there.adapters)
    assert moved.run_key != own.run_key
    assert (moved.point, moved.seed, moved.sequence_id) == (own.point, own.seed, own.sequence_id)
    assert moved.provenance["content_hash"] == own.provenance["content_hash"]
    assert moved.base_loss == pytest.approx(own.base_loss) and moved.token_p != own.token_p
    again = measure_moved(at_layer(search, own, 0), own, there, there.adapters)
    assert again.provenance["finished"] == moved.provenance["finished"]
    assert len(there.observations()) == 2 and len(FileStore(tmp_path / "own").observations()) == 4
    with pytest.raises(ModelError, match="layers 0 to"):
        measure_moved(at_layer(search, own, 99), own, there, there.adapters)
    with pytest.raises(DataError, match="another version"):
        at_layer(search, replace(own, run_key="0" * 16), 0)


def test_only_a_probe_can_be_moved_to_another_layer(
    make_search: Callable[..., PreparedSearch],
) -> None:
    search = make_search("probe=null", "adapter={target_modules: all-linear}")
    run = search.plan_run(search.spec.space.points()[0], "sft", 0, 0, "law")
    with pytest.raises(DataError, match="sits at all-linear of all layers: only a probe"):
        at_layer(search, observe(run, 0, 0, 0.0, 1e-3), 1)


def test_a_store_older_than_the_plateau_rule_is_read_without_it(
    make_search: Callable[..., PreparedSearch],
) -> None:
    today, then = make_search(*PHONEBOOK), make_search(*PHONEBOOK, "recipe.stop_gain=0.0")
    run = then.plan_run(DesignPoint(2, 30, 24), "sft", 0, 0, "law")
    moved = at_layer(today, observe(run, 0, 0, 0.0, 1e-3), 0)
    assert moved.spec.recipe.stop_gain == 0.0 and moved.spec.probe.layer == 0
