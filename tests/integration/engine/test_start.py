"""Runs that begin with an adapter of PEFT's are PEFT runs that begin with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.api.records.facts import check_same_start
from pmlray.backends.store.file_store import FileStore
from pmlray.config import Recipe
from pmlray.config.adapters.placement import Placement
from pmlray.config.adapters.start_adapter import StartAdapter, read_start
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import resolve_model
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.engine.adapters.packed_factors import initial_As
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.peft_io import LLAMAS_NAMES, save_adapter
from pmlray.engine.adapters.start_weights import start_weights
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import DataError, StoreError
from pmlray.law import law_data
from pmlray.memory import Record
from pmlray.types import Observation, Pack, Room
from tests.placements import PLACEMENTS
from tests.unit.engine.conftest import Trained, make_run, random_record, train

RECIPE = Recipe(learning_rate=3e-3, weight_decay=0.01)
STEPS = 12
RANK = 3
ALPHA = 7
KINDS: dict[str, dict[str, Any]] = {
    "down_proj of one layer": {"target_modules": ["down_proj"], "layers_to_transform": [2]},
    "all-linear": {"target_modules": "all-linear"},
    "q and v, rsLoRA": {
        "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3], "use_rslora": True
    },
    "a pattern": {"target_modules": r".*\.layers\.[13]\.mlp\.(up|gate)_proj"},
    "whole names": {"target_modules": ["model.layers.3.self_attn.o_proj"]},
    "one layer by number": {"target_modules": ["self_attn.k_proj"], "layers_to_transform": 0},
}  # fmt: skip


def base_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def saved(folder: Path, tiny_folder: str, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """An adapter by PEFT itself, as if trained: B is not 0."""
    settings: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", **more}
    adapted = peft.get_peft_model(base_of(tiny_folder), peft.LoraConfig(**settings))
    torch.manual_seed(3)
    for name, values in adapted.named_parameters():
        if "lora_B" in name:
            values.data = 0.3 * torch.randn_like(values)
    adapted.to(dtype).save_pretrained(str(folder))
    return folder


def read(folder: Path, tiny_folder: str) -> StartAdapter:
    model = Model(id=tiny_folder, dtype="float32")
    return read_start(folder, model, resolve_model(tiny_folder, None))


def run(
    start: StartAdapter, base: BaseModel, record: Record, rank: int = RANK, steps: int = STEPS
) -> Trained:
    length = len(record.target_ids)
    runs = [make_run(rank, length, steps, seed=7)]
    return train(base, runs, [[record]], RECIPE, start=start_weights(start))


def by_peft(adapted: Any, record: Record, steps: int = STEPS) -> list[float]:
    """Losses before each step of torch's AdamW, and after the last."""
    lora = [p for name, p in adapted.named_parameters() if "lora_" in name]
    for values in lora:
        values.requires_grad = True
    optimizer = torch.optim.AdamW(lora, lr=1.0, weight_decay=RECIPE.weight_decay)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    labels = ids.clone()
    labels[0, : len(record.prompt_ids)] = -100
    losses = []
    for step in range(steps + 1):
        loss = adapted(ids, labels=labels).loss
        losses.append(loss.item())
        if step == steps:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora, RECIPE.clip_norm)
        optimizer.param_groups[0]["lr"] = RECIPE.rate_at(step, steps)
        optimizer.step()
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_as_peft_does(
    kind: str, tiny_at: Callable[[Placement], BaseModel], tiny_folder: str, tmp_path: Path
) -> None:
    saved(tmp_path, tiny_folder, **KINDS[kind])
    start = read(tmp_path, tiny_folder)
    record = random_record(16)
    ours = run(start, tiny_at(start.placement), record).members[0]
    adapted = peft.PeftModel.from_pretrained(base_of(tiny_folder), str(tmp_path))
    losses = by_peft(adapted, record)
    assert ours.step_losses == pytest.approx(losses[:-1], rel=1e-5)
    assert ours.scores.mean_nll == pytest.approx(losses[-1], rel=1e-5)
    with adapted.disable_adapter(), torch.no_grad():
        bare = by_peft(adapted, record, steps=0)[0]
    # The adapter changes the loss, and so does training, by far more than the tolerance.
    assert abs(losses[0] - bare) > 1e-3 and losses[-1] < losses[0] - 0.02


def factors(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in adapted.named_parameters() if "lora_" in name}


def test_columns_beyond_the_adapters_rank_start_at_nothing(
    tiny_at: Callable[[Placement], BaseModel], tiny_folder: str, tmp_path: Path
) -> None:
    """PEFT's adapter of the larger rank has the old scale, the old factors and, beside them, A as
    drawn and B at 0."""
    kind = KINDS["q and v, rsLoRA"]
    saved(tmp_path, tiny_folder, **kind)
    start, record, rank = read(tmp_path, tiny_folder), random_record(16), 5
    base = tiny_at(start.placement)
    ours = run(start, base, record, rank).members[0]
    small = peft.PeftModel.from_pretrained(base_of(tiny_folder), str(tmp_path))
    scale = ALPHA / RANK**0.5
    settings = {**kind, "use_rslora": False, "r": rank, "lora_alpha": scale * rank}
    large = peft.get_peft_model(base_of(tiny_folder), peft.LoraConfig(**settings))
    old, new = factors(small), factors(large)
    drawn = initial_As(base.site_shapes, rank, seed=7)
    for site in start.placement.sites:
        at = f"{LLAMAS_NAMES.of_site(site)}.lora_"
        a, b = (f"{at}{x}.default.weight" for x in "AB")
        new[a].data = torch.cat([old[a].data, drawn[site].T[RANK:]])
        new[b].data = torch.cat([old[b].data, torch.zeros(len(new[b]), rank - RANK)], dim=1)
    losses = by_peft(large, record)
    assert losses[0] == pytest.approx(by_peft(small, record, steps=0)[0], rel=1e-5)
    assert ours.step_losses == pytest.approx(losses[:-1], rel=1e-5)
    assert ours.scores.mean_nll == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_run_has_the_adapters_logits(
    kind: str,
    dtype: torch.dtype,
    tiny_at: Callable[[Placement], BaseModel],
    tiny_folder: str,
    tmp_path: Path,
) -> None:
    first = saved(tmp_path / "first", tiny_folder, dtype, **KINDS[kind])
    start = read(first, tiny_folder)
    ids = torch.tensor([list(random_record(12).target_ids)])
    logits = []
    for rank in (RANK, RANK + 2):
        lora = PackedLora(tiny_at(start.placement), [rank], [0], start=start_weights(start))
        then = tmp_path / f"then{rank}"
        save_adapter(then, start.placement, lora.weights(0), tiny_folder)
        logits.append(logits_of(then, tiny_folder, ids))
    wanted = logits_of(first, tiny_folder, ids)
    for found in logits:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(base_of(tiny_folder)(ids).logits, wanted, atol=1e-2)


def logits_of(folder: Path, tiny_folder: str, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base_of(tiny_folder), str(folder))(ids).logits


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_pmlrays_own_adapters_can_be_a_start(
    placement: Placement,
    tiny_at: Callable[[Placement], BaseModel],
    tiny_folder: str,
    tmp_path: Path,
) -> None:
    """Also those of the paper's block, which PEFT does not have."""
    base, record = tiny_at(placement), random_record(16)
    first = train(base, [make_run(RANK, 16, 8)], [[record]], RECIPE)
    save_adapter(tmp_path, placement, first.model.lora.weights(0), tiny_folder)
    start = read(tmp_path, tiny_folder)
    assert start.placement.sites == placement.sites
    again = run(start, tiny_at(start.placement), record, RANK + 1, steps=2).members[0]
    assert again.curve[0][1] == pytest.approx(first.members[0].scores.mean_nll, rel=1e-5)
    assert again.scores.mean_nll < again.curve[0][1]


def observed(
    search_file: Path, folder: Path, *overrides: str
) -> tuple[PreparedSearch, dict[int, Observation]]:
    """A search's runs, by their rank; a slot for each of two of three."""
    search = prepare_search(search_file, overrides)
    store = FileStore(folder)
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()]
    pack = Pack(0, tuple(runs), room=Room(2, 10_000))
    measure_pack(search, pack, store, store.adapters, TorchStepper, {})
    assert not store.failures()
    return search, {o.point.lora_rank: o for o in store.observations()}


def test_observations_of_a_search_that_begins_with_an_adapter(
    search_file: Path, tiny_folder: str, tmp_path: Path
) -> None:
    """Base losses are the bare base's, as of runs from scratch at the same sites, and what the
    adapter makes of the text is the loss at step 0."""
    kind = KINDS["q and v, rsLoRA"]
    saved(search_file.parent / "first", tiny_folder, **kind)
    common = ("probe=null", "space={lora_rank: [3, 4, 6], seq_len: [16], train_steps: [8]}",
              "design.n_initial=1", "evaluate={prose: true}")  # fmt: skip
    search, begun = observed(
        search_file, tmp_path / "begun", *common, "adapter={from_adapter: first}"
    )
    sites = f"target_modules: [q_proj, v_proj], layers: [1, 3], alpha: {ALPHA / RANK**0.5}r"
    _, fresh = observed(search_file, tmp_path / "fresh", *common, f"adapter={{{sites}}}")
    assert search.start is not None
    adapted = peft.PeftModel.from_pretrained(
        base_of(tiny_folder), str(search_file.parent / "first")
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    (record,) = search_memory(search, tokenizer, 0).records
    cut = Record(record.prompt_ids, record.target_ids[:16])
    at_start = by_peft(adapted, cut, steps=0)[0]
    assert begun.keys() == fresh.keys() == {3, 4, 6}
    for rank, o in begun.items():
        assert o.base_loss == pytest.approx(fresh[rank].base_loss, rel=1e-6)
        assert o.curve[0] == (0, pytest.approx(at_start, rel=1e-5))
        assert o.provenance["from_adapter"] == {
            "sha256": hashlib.sha256(
                (search_file.parent / "first" / "adapter_model.safetensors").read_bytes()
            ).hexdigest(),
            "lora_rank": RANK,
            "start_loss": o.curve[0][1],
        }
        assert abs(o.curve[0][1] - o.base_loss) > 1e-3
        assert o.delta_loss == o.base_loss - o.final_loss
        assert "from_adapter" not in fresh[rank].provenance
        # Controls are beside the bare base too: the untrained adapter alone changes them.
        assert o.prose_delta_loss != pytest.approx(fresh[rank].prose_delta_loss, abs=1e-3)
        card = (tmp_path / "begun" / "adapters" / o.run_key / "README.md").read_text()
        assert f"began with an adapter of rank {RANK}" in card
    with pytest.raises(DataError, match="no law in common"):
        law_data([*begun.values(), *fresh.values()])
    other = replace(search, start=replace(search.start, weights=search.start.weights + b" "))
    check_same_start(search, begun.values(), tmp_path)
    for one, found in ((other, begun), (search, fresh)):
        with pytest.raises(StoreError, match="another adapter"):
            check_same_start(one, found.values(), tmp_path)
