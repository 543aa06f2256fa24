"""The control against whole forward passes, and that it moves nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import peft
import pytest
import torch

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.stored_adapter import SiteAdapter, read_adapter
from pmlray.engine.evaluation.control_text import Control
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.training.step import TorchStepper
from pmlray.memory import FRESH_SEQUENCE_ID, Record, build_memory
from pmlray.types import Observation, Pack

PHONEBOOK = "task={kind: phonebook, prompt_format: plain}"
# What a clock, a date or the operating system says differs from run to run.
VOLATILE = {"gpu_seconds", "tokens_per_second", "peak_memory_bytes", "provenance"}


@pytest.fixture
def prepared(search_file: Path, tiny_folder: str) -> Callable[..., PreparedSearch]:
    return lambda *overrides: prepare_search(search_file, overrides)


def measure(search: PreparedSearch, folder: Path) -> tuple[Observation, ...]:
    store = FileStore(folder)
    runs = tuple(search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points())
    measure_pack(search, Pack(0, runs), store, store.adapters, TorchStepper, {})
    assert len(store.observations()) == len(runs)
    return store.observations()


def fresh_text(search: PreparedSearch, base: BaseModel, seq_len: int) -> list[Record]:
    """The control's text by the tasks' ordinary path: sequences of an id that no search can use."""

    def build(copy: int, n: int) -> list[Record]:
        tokenizer = base.tokenizer.backend_tokenizer
        ids = FRESH_SEQUENCE_ID + copy
        memory = build_memory(
            search.task, ids, n, tokenizer, lambda text: tokenizer.encode(text).ids
        )
        return list(memory.records)

    n_tokens = search.spec.evaluate.control_tokens
    if search.task.kind == "phonebook":
        return build(0, n_tokens)
    return [r for copy in range(n_tokens // seq_len) for r in build(copy, seq_len)]


def loss(model: torch.nn.Module, records: list[Record]) -> float:
    """Nats per target token, one record a forward pass."""
    total, count = 0.0, 0
    for record in records:
        ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(record.target_ids))
        total += nll.item() * len(record.target_ids)
        count += len(record.target_ids)
    return total / count


@pytest.mark.parametrize("task", [None, PHONEBOOK])
def test_is_the_loss_reduction_of_whole_forward_passes(
    prepared: Callable[..., PreparedSearch],
    tiny: Callable[..., BaseModel],
    tmp_path: Path,
    task: str | None,
) -> None:
    search = prepared(
        *([task] if task else []),
        "space={lora_rank: [2, 6], seq_len: [20, 40], train_steps: [30]}",
        "design.n_initial=1",
        # Whole phone numbers, and two or four of the sequences.
        "evaluate.control_tokens=80",
    )
    base = tiny("mlp", search.spec.probe.layer)
    for o in measure(search, tmp_path):
        adapter = read_adapter(tmp_path / "adapters" / o.run_key)
        assert isinstance(adapter, SiteAdapter)
        ((a, b),) = adapter.weights.values()
        records = fresh_text(search, base, o.point.seq_len)
        before = loss(base.model, records)
        with base.with_adapter(lambda _site, x, a=a, b=b: x @ a @ b):
            after = loss(base.model, records)
        assert o.control_delta_loss == pytest.approx(before - after, rel=1e-4, abs=1e-5)
        # Fresh text is not the text: it is neither untouched nor learnt as well.
        assert abs(before - after) > 0.01 and before - after < o.delta_loss


def test_agrees_with_peft(
    prepared: Callable[..., PreparedSearch], fresh_tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    search = prepared(
        "probe={placement: down_proj, layer: 2}",
        "space={lora_rank: [4], seq_len: [24], train_steps: [30]}",
        "design.n_initial=1",
        "evaluate.control_tokens=48",
    )
    base = fresh_tiny("down_proj", 2)
    (o,) = measure(search, tmp_path)
    records = fresh_text(search, base, 24)
    before = loss(base.model, records)
    folder = str(tmp_path / "adapters" / o.run_key)
    after = loss(peft.PeftModel.from_pretrained(base.model, folder), records)
    assert o.control_delta_loss == pytest.approx(before - after, rel=1e-4, abs=1e-5)


def test_an_adapter_that_changes_nothing_scores_exactly_zero(
    prepared: Callable[..., PreparedSearch], tiny: Callable[..., BaseModel]
) -> None:
    search = prepared()
    base = tiny("mlp", search.spec.probe.layer)
    lora = PackedLora(base, [1, 4], [0, 1])
    model = AdaptedModel(base, lora)
    control = Control(search, base, model, [16, 64], build_prefix_cache)
    for adapter in (0, 1):
        for seq_len in (16, 64):
            assert control.score(adapter, seq_len).delta_loss == 0.0
    assert control.score(0, 32).delta_loss is None
    lora.factors[0].B.data[1] = 0.1
    assert control.score(0, 16).delta_loss == 0.0 != control.score(1, 16).delta_loss


def test_changes_no_other_number(prepared: Callable[..., PreparedSearch], tmp_path: Path) -> None:
    space = "space={lora_rank: [1, 4], seq_len: [16, 30], train_steps: [10, 40]}"
    found = [
        measure(
            prepared(
                space, "design.n_initial=1", "recipe.dropout=0.1", f"evaluate.control_tokens={n}"
            ),
            tmp_path / str(n),
        )
        for n in (0, 64)
    ]
    for without, with_control in zip(*found, strict=True):
        a, b = asdict(without), asdict(with_control)
        assert a.pop("control_delta_loss") is None and b.pop("control_delta_loss") is not None
        assert a.pop("control_recall") is None and b.pop("control_recall") is not None
        assert {k: v for k, v in a.items() if k not in VOLATILE} == {
            k: v for k, v in b.items() if k not in VOLATILE
        }


def test_records_of_ones_own_have_no_control(
    prepared: Callable[..., PreparedSearch], search_file: Path, tmp_path: Path
) -> None:
    lines = [f'{{"query": "Key {i}?", "target": "value {i}"}}' for i in range(5)]
    (search_file.parent / "facts.jsonl").write_text("\n".join(lines))
    search = prepared(
        "task={kind: records, records: facts.jsonl, prompt_format: plain}",
        "space={lora_rank: [2], seq_len: [16], train_steps: [4]}",
        "design.n_initial=1",
    )
    assert measure(search, tmp_path)[0].control_delta_loss is None
