"""p of each token while it trains, against runs that end there and against the bare model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.training import metrics
from pmlray.memory import Record
from pmlray.types import MemftRules, PlannedRun
from tests.unit.engine.conftest import make_run, random_record, train

STEADY = Recipe(learning_rate=1e-2, warmup_steps=0, decay_share=0.0)


def close_to(p: Sequence[float]) -> object:
    return pytest.approx(p, rel=6e-3)


@pytest.mark.parametrize(("dropout", "batch_size"), [(0.0, 3), (0.1, 3), (0.0, 2)])
def test_the_table_holds_p_after_that_many_steps(
    tiny: Callable[..., BaseModel], dropout: float, batch_size: int
) -> None:
    base = tiny()
    recipe = STEADY.model_copy(update={"dropout": dropout, "batch_size": batch_size})
    # The longest first in a batch, not here.
    records = [random_record(n, n) for n in (4, 9, 6)]
    table = train(base, [make_run(4, 19, 11)], [records], recipe).members[0].token_p_curve
    assert [step for step, _ in table] == [0, 1, 2, 4, 8]
    for step, p in table[1:]:
        short = train(base, [make_run(4, 19, step)], [records], recipe).members[0]
        assert p == close_to(short.scores.token_p)


def test_step_0_is_the_model_without_an_adapter(tiny: Callable[..., BaseModel]) -> None:
    base, record = tiny(), random_record(20)
    step, p = train(base, [make_run(2, 20, 2)], [[record]], STEADY).members[0].token_p_curve[0]
    ids = torch.tensor([[*record.prompt_ids, *record.target_ids]])
    with torch.no_grad():
        logits = base.model(ids).logits[0, len(record.prompt_ids) - 1 : -1]
    expected = logits.softmax(dim=1)[range(20), list(record.target_ids)]
    assert step == 0 and p == close_to(expected.tolist())


def test_tables_do_not_depend_on_the_pack(tiny: Callable[..., BaseModel]) -> None:
    base, records = tiny(), [random_record(6, 3), random_record(9, 4)]
    # Two share a trunk; the others look at their rows in ways of their own.
    runs = [make_run(2, 15, 40), make_run(2, 15, 20)]
    runs += [make_run(4, 15, 20, method) for method in ("memft_ot", "memft_sw", "memft_rd")]
    rules = MemftRules(temporal=True)

    def tables(chosen: Sequence[PlannedRun], own: Sequence[Sequence[Record]]) -> list:
        trained = train(base, chosen, own, Recipe(learning_rate=1e-2, batch_size=2), rules).members
        return [trained[i].token_p_curve for i in range(len(chosen))]

    together = tables(runs, [records] * len(runs))
    for run, table in zip(runs, together, strict=True):
        (alone,) = tables([run], [records])
        assert [step for step, _ in table] == [step for step, _ in alone]
        assert [step for step, _ in table][:5] == [0, 1, 2, 4, 8]
        for (_, p), (_, expected) in zip(table, alone, strict=True):
            assert len(p) == 15 and p == close_to(expected)


def test_runs_of_too_many_tokens_keep_no_table(
    tiny: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_TOKENS", 8)
    records = [[random_record(9)], [random_record(8)]]
    trained = train(tiny(), [make_run(2, 9, 3), make_run(2, 8, 3)], records, STEADY).members
    assert trained[0].token_p_curve == () and len(trained[1].token_p_curve) == 3
