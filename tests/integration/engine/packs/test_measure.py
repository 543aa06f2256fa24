"""Every task and both families through the real engine, from spec to stored observation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from pmlray.backends.store.file_store import FileStore
from pmlray.config import Recipe
from pmlray.config.bases.models import resolve_model
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import WEIGHTS_FILE
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.measure import measure_pack
from pmlray.engine.model import base_model
from pmlray.engine.model.base_model import load_base_model
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import ModelError
from pmlray.types import METHODS, DesignPoint, Observation, Pack
from tests.unit.engine.conftest import make_run, random_record, train


def measure(
    search: PreparedSearch, folder: Path, points: list[DesignPoint]
) -> tuple[Observation, ...]:
    store = FileStore(folder)
    runs = tuple(search.plan_run(p, m, 0, 0, "law") for p in points for m in METHODS)
    measure_pack(search, Pack(0, runs), store, store.adapters, TorchStepper, {})
    assert not store.failures()
    return store.observations()


@pytest.fixture
def prepared(search_file: Path, tiny_folder: str) -> Callable[..., PreparedSearch]:
    def make(*overrides: str) -> PreparedSearch:
        return prepare_search(search_file, overrides)

    return make


def test_phonebook(prepared: Callable[..., PreparedSearch], tmp_path: Path) -> None:
    search = prepared(
        "task={kind: phonebook, prompt_format: plain}",
        "space={lora_rank: [4], seq_len: [35, 60], train_steps: [40]}",
        "recipe.batch_size=2",
        "design.n_initial=2",
    )
    observations = measure(search, tmp_path, list(search.spec.space.points()))
    assert len(observations) == 2 * len(METHODS)
    for o in observations:
        # Ten byte tokens a number: 35 tokens hold three whole records.
        assert o.supervised_tokens == 10 * (o.point.seq_len // 10) == len(o.token_p)
        assert o.final_loss < o.base_loss
        # What bits an adapter parameter are counted by.
        assert o.provenance["n_records"] == o.point.seq_len // 10
        adapter = read_adapter(FileStore(tmp_path).adapters / o.run_key)
        assert isinstance(adapter, SiteAdapter)
        ((a, b),) = adapter.weights.values()
        assert 4 * o.provenance["adapter_params_per_rank"] == a.numel() + b.numel()


@pytest.mark.parametrize(("has", "computed_in"), [(True, "bfloat16"), (False, "float32")])
def test_runs_say_what_a_base_in_bfloat16_was_computed_in(
    prepared: Callable[..., PreparedSearch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has: bool,
    computed_in: str,
) -> None:
    monkeypatch.setattr(base_model, "multiplies_bfloat16", lambda _device: has)
    search = prepared(
        "model.dtype=bfloat16",
        "space={lora_rank: [1], seq_len: [16], train_steps: [2]}",
        "design.n_initial=1",
    )
    observations = measure(search, tmp_path, list(search.spec.space.points()))
    assert {o.provenance["base_computed_in"] for o in observations} == {computed_in}


def test_records_with_the_papers_field_names(
    prepared: Callable[..., PreparedSearch], search_file: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"Key {i}?", "matching": f"value {i}{i}"} for i in range(9)]
    file = search_file.parent / "facts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    search = prepared(
        "task={kind: records, records: facts.jsonl, prompt_format: plain}",
        "space={lora_rank: [8], seq_len: [24], train_steps: [60]}",
        "recipe.batch_size=3",
        "design.n_initial=1",
    )
    for o in measure(search, tmp_path, list(search.spec.space.points())):
        assert o.supervised_tokens == 24
        assert o.final_loss < o.base_loss


def test_base_text_with_replaced_tokens(
    prepared: Callable[..., PreparedSearch], search_file: Path, tmp_path: Path
) -> None:
    (search_file.parent / "text.txt").write_text("All happy families are alike. " * 20)
    search = prepared(
        "task={kind: long_context, random_ratio: 40, text: text.txt, prompt_format: plain}",
        "space={lora_rank: [4], seq_len: [30], train_steps: [20]}",
        "design.n_initial=1",
    )
    sft, *_ = measure(search, tmp_path, list(search.spec.space.points()))
    assert sft.supervised_tokens == 30
    assert [step for step, _ in sft.curve] == [0, 1, 2, 4, 8, 16, 20]


def test_a_pack_of_several_placements_is_what_a_pack_of_each_is(
    make_placed_search: Callable[..., PreparedSearch], tiny_folder: str, tmp_path: Path
) -> None:
    search = make_placed_search(
        "everywhere: {target_modules: all-linear, alpha: 2r}",
        "some: {target_modules: [q_proj, v_proj], layers: [1, 3]}",
        "block: {target_modules: mlp_block, layers: [2]}",
    )
    points = [p for p in search.spec.space.points() if p.seq_len == 16]
    assert {p.placement for p in points} == set(search.placements) and len(points) == 6
    together = {o.run_key: o for o in measure(search, tmp_path / "together", points)}
    for name, placement in search.placements.items():
        own = [p for p in points if p.placement == name]
        for alone in measure(search, tmp_path / str(name), own):
            mixed = together.pop(alone.run_key)
            assert dict(mixed.curve) == pytest.approx(dict(alone.curve), rel=1e-5)
            assert mixed.final_loss == pytest.approx(alone.final_loss, rel=1e-4)
            assert mixed.recall == alone.recall
            facts = mixed.provenance
            for key in ("placement", "adapter_params", "adapter_params_per_rank"):
                assert facts[key] == alone.provenance[key]
            assert facts["placement"].items() >= placement.to_json().items()
            assert facts["placement"]["name"] == name
            folder = FileStore(tmp_path / "together").adapters / alone.run_key
            stored = load_file(folder / WEIGHTS_FILE)
            assert sum(t.numel() for t in stored.values()) == facts["adapter_params"]
            card = (folder / "README.md").read_text()
            assert search.spec.places[name].describe() in card
            assert f"{facts['adapter_params']} parameters" in card
    assert not together


def tiny_qwen3(folder: Path) -> Path:
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_qwen3_cached_equals_full(tmp_path: Path, tiny_folder: str, placement: str) -> None:
    folder = tiny_qwen3(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.link(Path(tiny_folder) / name, folder / name)
    source = resolve_model(str(folder), None)
    assert source.geometry.head_dim == 8 and source.geometry.n_kv_heads == 2
    probe = Probe(placement=placement, layer=1)  # type: ignore[arg-type]
    base = load_base_model(
        str(folder), source, None, "float32", (probe.to_placement(),), torch.device("cpu")
    )
    record = random_record(20)
    trained = train(base, [make_run(4, 20, 20)], [[record]], Recipe(learning_rate=1e-2))
    ((a, b),) = trained.model.lora.weights(0).values()
    assert (
        4 * base.placements[0].params_per_rank(source.geometry.adaptable) == a.numel() + b.numel()
    )
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad(), base.with_adapter(lambda _site, x: x @ a @ b):
        logits = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, -20:], reduction="none")
    assert trained.members[0].scores.nll[0] == pytest.approx(nll.tolist(), rel=1e-5, abs=1e-6)


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel. is not supported.*Qwen3ForCausalLM"):
        resolve_model(str(tmp_path), None)
