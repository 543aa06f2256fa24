"""What lies around packs of several placements: graphs, the store of prefixes, ZeRO-3, reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.peft_io import LLAMAS_NAMES
from pmlray.engine.adapters.peft_model import adapted_model, load_base
from pmlray.engine.measure import measure_pack
from pmlray.engine.model import head
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.model.prefix_store import PrefixStore, entry_name
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.token_report import at_layer, trace_tokens
from pmlray.engine.training import cuda_graph_step
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import DataError, RunError
from pmlray.types import Pack
from tests.integration.engine.packs.test_checkpoints import outcome
from tests.integration.engine.recording import Recorded
from tests.mixed_packs import PACKS, RECIPE, WHERE, runs_of, trained
from tests.unit.engine.conftest import random_record

TinyAt = Callable[..., BaseModel]


def test_replayed_steps_are_the_steps(tiny_at: TinyAt, monkeypatch: pytest.MonkeyPatch) -> None:
    names = PACKS["one kept site"]
    base = tiny_at(*(WHERE[name] for name in names))
    runs, recipe = runs_of(names), RECIPE.model_copy(update={"dropout": 0.1})
    # The head's way on a CPU asks values for the way, which no captured step may.
    monkeypatch.setattr(head, "_in_caches", lambda values: False)
    eager, recorder = trained(base, runs, recipe), Recorded()
    monkeypatch.setattr(cuda_graph_step, "recorder_for", lambda device: recorder)
    replayed = trained(base, runs, recipe)
    assert outcome(replayed.members) == outcome(eager.members)
    # Those of one budget leave together.
    assert recorder.records == 1 and recorder.replays > 5


def test_a_sharded_base_trains_one_placement_after_another(
    make_placed_search: Callable[..., PreparedSearch], tiny_at: TinyAt
) -> None:
    """And refuses a pack with one that PEFT has not."""
    from pmlray.backends.deepspeed.zero3_packs import check_sharded

    search = make_placed_search(
        "everywhere: {target_modules: all-linear}",
        "some: {target_modules: [q_proj, v_proj], layers: [1, 3]}",
        "block: {target_modules: mlp_block, layers: [2]}",
    )
    points = {point.placement: point for point in search.spec.space.points()}
    runs = [search.plan_run(point, "sft", 0, 5, "law") for point in points.values()]
    check_sharded(search, Pack(0, tuple(runs[:2])))
    with pytest.raises(RunError, match="set linear modules"):
        check_sharded(search, Pack(0, tuple(runs)))
    base = load_base(search)
    for run in runs[:2]:
        placement, rank = search.placement_of(run.point), run.point.lora_rank
        packed = PackedLora(tiny_at(placement), [rank], [5]).weights(0)
        model = adapted_model(base, search, run)
        found = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(found) == 2 * len(packed)
        for site, (a, _) in packed.items():
            (own,) = (
                p for name, p in found.items() if LLAMAS_NAMES.of_site(site) + ".lora_A" in name
            )
            assert torch.equal(own.T, a)
        model.remove_adapter()


def test_tokens_are_traced_below_the_lowest_of_the_placements(
    make_placed_search: Callable[..., PreparedSearch], tiny_at: TinyAt, tmp_path: Path
) -> None:
    search = make_placed_search(
        "low: {target_modules: [q_proj], layers: [1]}",
        "high: {target_modules: mlp_block, layers: [3]}",
    )
    points = [p for p in search.spec.space.points() if (p.lora_rank, p.seq_len) == (1, 16)]
    runs = tuple(search.plan_run(point, "sft", 0, 0, "law") for point in points)
    store = FileStore(tmp_path)
    measure_pack(search, Pack(0, runs), store, store.adapters, TorchStepper, {})
    traced = trace_tokens(search, store.observations())[0]
    base = tiny_at(WHERE["block"])
    (record, *_) = search_memory(search, base.tokenizer, 0).records
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad():
        out = base.model(ids, output_hidden_states=True)
    behind = slice(len(record.prompt_ids) - 1, -1)
    norms = out.hidden_states[1][0, behind].norm(dim=-1)
    assert [t.norm for t in traced[: len(norms)]] == pytest.approx(norms.tolist(), rel=1e-4)
    with pytest.raises(DataError, match="sits at low: only a probe"):
        at_layer(search, next(o for o in store.observations() if o.point.placement == "low"), 0)


def test_the_store_of_prefixes_tells_packs_apart(tiny_at: TinyAt, tmp_path: Path) -> None:
    records = [random_record(12, 0)]
    bases = [tiny_at(*(WHERE[name] for name in names)) for names in PACKS.values()]
    bases += [tiny_at(WHERE["block"]), tiny_at(WHERE["down"])]
    names = {entry_name(base, records) for base in bases}
    # The block alone, and with others above it, has one prefix.
    assert len(names) == len(bases) - 1
    store = PrefixStore(tmp_path)
    for base in [*bases, *bases]:
        (mine,), (built,) = store.fetch(base, records), build_prefix_cache(base, records)
        assert torch.equal(mine.hidden_TD, built.hidden_TD)
        assert torch.equal(mine.adapter_in_TX, built.adapter_in_TX)
    assert store.count.built == len(names)
