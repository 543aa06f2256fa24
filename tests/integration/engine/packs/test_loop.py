"""A packed run is the separate runs; a bare reference loop agrees; recall is real."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.evaluation.scores import Decoding, decode_exactly
from pmlray.engine.model import batches
from pmlray.engine.model.base_model import BaseModel
from pmlray.memory import Record
from pmlray.types import MemftRules
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_packed_equals_separate(tiny: Callable[..., BaseModel], dropout: float) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    runs = [
        make_run(1, 12, 25, "sft", 0, 0),
        make_run(2, 40, 25, "memft_ot", 1, 0),
        make_run(4, 25, 25, "memft_sw", 2, 1),
        make_run(8, 12, 25, "sft", 0, 1),
        make_run(3, 33, 25, "memft_ot", 3, 2),
        make_run(16, 64, 25, "memft_sw", 4, 2),
    ]
    records = [[random_record(r.point.seq_len, r.sequence_id)] for r in runs]
    together = train(base, runs, records, recipe)
    for i, run in enumerate(runs):
        alone = train(base, [run], [records[i]], recipe).members[0]
        assert together.members[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5), run
        assert len(alone.step_losses) == 25
        assert alone.step_losses[-1] < alone.step_losses[0]


def test_packed_equals_separate_for_many_records(tiny: Callable[..., BaseModel]) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"batch_size": 3})
    records = [random_record(4 + i % 3, i, prompt=3 + i % 4) for i in range(10)]
    runs = [make_run(2, 50, 30, "sft", 0), make_run(4, 50, 20, "memft_sw", 1)]
    runs.append(make_run(4, 25, 30, "memft_ot", 1))
    own = [records, records, records[:5]]
    together = train(base, runs, own, recipe, MemftRules(temporal=True))
    for i, run in enumerate(runs):
        alone = train(base, [run], [own[i]], recipe, MemftRules(temporal=True)).members[0]
        assert together.members[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5), run


def test_a_step_in_parts_is_the_same_step(
    tiny: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"batch_size": 4})
    records = [random_record(5 + i, i, prompt=3) for i in range(6)]
    runs = [make_run(2, 45, 15, "sft", 0), make_run(3, 45, 15, "memft_ot", 1)]
    whole = train(base, runs, [records, records], recipe)
    # About a record at a time, so that every adapter's rows lie in several parts.
    monkeypatch.setattr(batches, "CPU_MICRO_BATCH_TOKENS", 16)
    parts = train(base, runs, [records, records], recipe)
    for i in range(len(runs)):
        losses = whole.members[i].step_losses
        assert parts.members[i].step_losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_cached_losses_equal_a_full_forward(tiny: Callable[..., BaseModel], placement: str) -> None:
    base = tiny(placement, 2)
    record = random_record(30)
    trained = train(base, [make_run(4, 30, 20)], [[record]], RECIPE)
    ((a, b),) = trained.model.lora.weights(0).values()
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad(), base.with_adapter(lambda _site, x: x @ a @ b):
        logits = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, -30:], reduction="none")
    assert trained.members[0].scores.nll[0] == pytest.approx(nll.tolist(), rel=1e-5, abs=1e-6)


def test_base_loss_is_the_adapter_free_model(tiny: Callable[..., BaseModel]) -> None:
    base = tiny()
    record = random_record(20)
    trained = train(base, [make_run(2, 20, 2)], [[record]], RECIPE)
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    labels = ids.clone()
    labels[0, : len(record.prompt_ids)] = -100
    with torch.no_grad():
        expected = base.model(ids, labels=labels).loss.item()
    assert trained.members[0].curve[0] == (0, pytest.approx(expected, rel=1e-5))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_curve_holds_the_loss_after_that_many_steps(
    tiny: Callable[..., BaseModel], dropout: float
) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"warmup_steps": 0, "decay_share": 0.0, "dropout": dropout})
    records = [random_record(20)]
    curve = train(base, [make_run(4, 20, 20)], [records], recipe).members[0].curve
    assert [step for step, _ in curve] == [0, 1, 2, 4, 8, 16, 20]
    for step, loss in curve[1:]:
        short = train(base, [make_run(4, 20, step)], [records], recipe).members[0]
        assert loss == pytest.approx(short.scores.mean_nll, rel=1e-5)


def test_exact_recall_is_what_generate_reproduces(tiny: Callable[..., BaseModel]) -> None:
    base = tiny()
    records = [random_record(12, 0), random_record(60, 1)]
    runs = [make_run(16, 12, 150), make_run(1, 60, 10)]
    trained = train(base, runs, [[r] for r in records], RECIPE)
    exact = [trained.members[i].scores.recall.exact for i in range(2)]
    assert exact == [1.0, 0.0]
    weights = [trained.model.lora.weights(i) for i in range(2)]
    expected = [
        greedy(base, w, r) == list(r.target_ids) for w, r in zip(weights, records, strict=True)
    ]
    together = [Decoding(w, 1.0, (r,)) for w, r in zip(weights, records, strict=True)]
    assert list(decode_exactly(base, together, 60)) == expected == [True, False]
    swapped = [Decoding(w, 1.0, (r,)) for w, r in zip(weights, reversed(records), strict=True)]
    assert decode_exactly(base, swapped, 60) == (False, False)
    assert decode_exactly(base, together, 11) == (None, None)
    # Only the records that are wholly within the limit are decoded.
    assert decode_exactly(base, [Decoding(weights[0], 1.0, tuple(records))], 71) == (True,)


def greedy(base: BaseModel, weights: AdapterWeights, record: Record) -> list:
    """One token at a time by whole forward passes of one adapter alone."""
    ((a, b),) = weights.values()
    ids = list(record.prompt_ids)
    with torch.no_grad(), base.with_adapter(lambda _site, x: x @ a @ b):
        for _ in record.target_ids:
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(record.prompt_ids) :]


def test_a_safe_token_is_always_the_argmax(tiny: Callable[..., BaseModel]) -> None:
    lengths = (8, 12, 30)
    records = [[random_record(n, n)] for n in lengths]
    # So short that some tokens are safe, some are right without being so, and some are wrong.
    runs = [make_run(16, n, steps) for n, steps in zip(lengths, (80, 60, 40), strict=True)]
    trained = train(tiny(), runs, records, RECIPE)
    safe, n_wrong = 0, 0
    for member in trained.members.values():
        wrong = set(member.scores.wrong_tokens)
        n_wrong += len(wrong)
        for i, p in enumerate(member.scores.token_p):
            if p > 0.5:
                safe += 1
                assert i not in wrong
    assert safe > 10 and n_wrong > 0


def test_a_diverging_adapter_leaves_and_the_others_finish(
    tiny: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    runs = [make_run(2, 10, 16), make_run(2, 10, 16, seed=1)]
    records = [[random_record(10)], [random_record(10)]]
    original = Recipe.rate_at
    calls = {"n": 0}

    def broken(self: Recipe, *where: Any) -> float:
        calls["n"] += 1
        return math.inf if calls["n"] == 4 else original(self, *where)

    monkeypatch.setattr(Recipe, "rate_at", broken)
    trained = train(base, runs, records, RECIPE)
    assert trained.members[1].divergence and trained.members[0].divergence is None
    assert trained.members[0].curve[-1][0] == 16
