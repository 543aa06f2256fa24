"""What holds of adapters at one site holds of adapters at many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pmlray.config import Recipe
from pmlray.config.adapters.placement import Placement, Site
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.evaluation.scores import Decoding, decode_exactly
from pmlray.engine.model import batches
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.memory import Record
from pmlray.types import METHODS, MemftRules
from tests.integration.engine.packs.test_checkpoints import Cut, outcome
from tests.placements import PLACEMENTS
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=1e-2)
TinyAt = Callable[[Placement], BaseModel]
placed = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)


def adapted(base: BaseModel, weights: AdapterWeights) -> Callable[[Site, Tensor], Tensor]:
    """What LoRA adds at a site, written out."""
    rank = next(iter(weights.values()))[0].shape[1]
    factor = base.placements[0].scale(rank)
    return lambda site, x: factor * (x @ weights[site][0] @ weights[site][1])


@pytest.mark.parametrize(
    ("name", "dropout"), [*((name, 0.0) for name in PLACEMENTS), ("five of one layer", 0.1)]
)
def test_packed_equals_separate(tiny_at: TinyAt, name: str, dropout: float) -> None:
    base = tiny_at(PLACEMENTS[name])
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    runs = [
        make_run(1, 12, 12, "sft", 0, 0),
        make_run(4, 20, 12, "memft_ot", 1, 0),
        make_run(3, 12, 12, "memft_sw", 2, 1),
    ]
    records = [[random_record(r.point.seq_len, r.sequence_id)] for r in runs]
    together = train(base, runs, records, recipe)
    for i, run in enumerate(runs):
        alone = train(base, [run], [records[i]], recipe).members[0]
        assert together.members[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5), run
        assert alone.step_losses[-1] < alone.step_losses[0] - 0.1


def test_a_step_in_parts_is_the_same_step(tiny_at: TinyAt, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_at(PLACEMENTS["all-linear everywhere"])
    recipe = RECIPE.model_copy(update={"batch_size": 4})
    records = [random_record(5 + i, i, prompt=3) for i in range(6)]
    runs = [make_run(2, 45, 4, "sft", 0), make_run(3, 45, 4, "memft_ot", 1)]
    whole = train(base, runs, [records, records], recipe)
    monkeypatch.setattr(batches, "CPU_MICRO_BATCH_TOKENS", 16)
    parts = train(base, runs, [records, records], recipe)
    for i in range(len(runs)):
        losses = whole.members[i].step_losses
        assert parts.members[i].step_losses == pytest.approx(losses, rel=1e-5)


@placed
def test_cached_losses_equal_a_full_forward(tiny_at: TinyAt, placement: Placement) -> None:
    base = tiny_at(placement)
    record = random_record(30)
    trained = train(base, [make_run(4, 30, 10)], [[record]], RECIPE)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad():
        bare = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
        with base.with_adapter(adapted(base, trained.model.lora.weights(0))):
            logits = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, -30:], reduction="none")
    assert trained.members[0].scores.nll[0] == pytest.approx(nll.tolist(), rel=1e-5, abs=1e-6)
    assert trained.members[0].curve[0][1] == pytest.approx(
        torch.nn.functional.cross_entropy(bare, ids[0, -30:]).item(), rel=1e-5
    )
    assert not torch.allclose(bare, logits, atol=1e-2)


@placed
def test_exact_recall_is_what_greedy_decoding_reproduces(
    tiny_at: TinyAt, placement: Placement
) -> None:
    base = tiny_at(placement)
    records = [random_record(8, 0), random_record(60, 1)]
    runs = [make_run(8, 8, 60), make_run(1, 60, 4)]
    trained = train(base, runs, [[r] for r in records], RECIPE)
    weights = [trained.model.lora.weights(i) for i in range(2)]
    found = [
        greedily(base, w, r) == list(r.target_ids) for w, r in zip(weights, records, strict=True)
    ]
    assert found == [True, False]
    assert [trained.members[i].scores.recall.exact for i in range(2)] == [1.0, 0.0]
    scales = [placement.scale(rank) for rank in (8, 1)]
    together = [Decoding(*of, (r,)) for *of, r in zip(weights, scales, records, strict=True)]
    assert decode_exactly(base, together, 60) == (True, False)
    swapped = [
        Decoding(*of, (r,)) for *of, r in zip(weights, scales, reversed(records), strict=True)
    ]
    assert decode_exactly(base, swapped, 60) == (False, False)


def greedily(base: BaseModel, weights: AdapterWeights, record: Record) -> list[int]:
    ids = list(record.prompt_ids)
    with torch.no_grad(), base.with_adapter(adapted(base, weights)):
        for _ in record.target_ids:
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(record.prompt_ids) :]


def test_a_pack_cut_off_ends_bit_for_bit_as_undisturbed(tiny_at: TinyAt, tmp_path: Path) -> None:
    base = tiny_at(PLACEMENTS["five of one layer"])
    rules = MemftRules(margin=0.6, recheck_epochs=2)
    runs = [*(make_run(2, 30, 20, method) for method in METHODS), make_run(3, 30, 12)]
    records = [[random_record(6, sequence_id=i) for i in range(5)]] * len(runs)
    recipe = Recipe(learning_rate=2e-2, batch_size=2, dropout=0.1, warmup_steps=4, decay_share=0.2)
    undisturbed = outcome(train(base, runs, records, recipe, rules).members)
    found: dict = {}
    for at in (3, 9, 1000):
        keeper = Checkpoints(tmp_path, runs, every=1e9, leave=Cut(at))
        try:
            train(base, runs, records, recipe, rules, keeper, found.update)
        except AskedToLeave:
            continue
        break
    assert outcome(found) == undisturbed
