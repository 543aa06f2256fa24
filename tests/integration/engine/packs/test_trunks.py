"""Schedules that share a trunk measure what they would alone; saturated runs end early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.types import MemftRules
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=1e-2, warmup_steps=3, decay_share=0.25, stop_loss=0.0, stop_gain=0.0)


@pytest.mark.parametrize(
    ("method", "dropout"), [("sft", 0.0), ("memft_ot", 0.1), ("memft_sw", 0.0), ("memft_sw", 0.1)]
)
def test_budgets_of_a_trunk_equal_separate_runs(
    tiny: Callable[..., BaseModel], method: str, dropout: float
) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    runs = [make_run(4, 25, t, method) for t in (8, 40, 20)]  # type: ignore[arg-type]
    runs.append(make_run(4, 25, 20, method, seed=1))  # type: ignore[arg-type]
    record = random_record(25)
    together = train(base, runs, [[record]] * 4, recipe).members
    for i, run in enumerate(runs):
        alone = train(base, [run], [[record]], recipe).members[0]
        assert together[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5)
        assert len(alone.step_losses) == run.point.train_steps
        assert together[i].scores.nll[0] == pytest.approx(alone.scores.nll[0], rel=1e-4)
        assert [s for s, _ in together[i].curve] == [s for s, _ in alone.curve]
        for (_, a), (_, b) in zip(together[i].curve, alone.curve, strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        assert alone.charged_steps == run.point.train_steps
    # Steps 0 to 5 serve three, 6 to 14 two; the decays are 2 and 5 steps, the trunk has 25 left.
    assert together[0].charged_steps == pytest.approx(6 / 3 + 2)
    assert together[2].charged_steps == pytest.approx(6 / 3 + 9 / 2 + 5)
    assert together[1].charged_steps == pytest.approx(6 / 3 + 9 / 2 + 25)
    assert together[3].charged_steps == 20


def test_many_records_share_trunks_unless_the_curriculum_sees_the_budget(
    tiny: Callable[..., BaseModel],
) -> None:
    base = tiny()
    recipe = RECIPE.model_copy(update={"batch_size": 3})
    records = [random_record(4 + i % 3, i) for i in range(10)]
    runs = [make_run(2, 50, t, m) for m in ("sft", "memft_sw") for t in (12, 30)]  # type: ignore[arg-type]
    together = train(base, runs, [records] * 4, recipe, MemftRules(temporal=True)).members
    for i, run in enumerate(runs):
        alone = train(base, [run], [records], recipe, MemftRules(temporal=True)).members[0]
        assert together[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5)
    assert [together[i].charged_steps for i in range(4)] == [4.5 + 3, 4.5 + 21, 12, 30]


def test_the_papers_schedule_shares_nothing(tiny: Callable[..., BaseModel]) -> None:
    recipe = RECIPE.model_copy(update={"schedule": "linear"})
    runs = [make_run(2, 10, t) for t in (8, 16)]
    together = train(tiny(), runs, [[random_record(10)]] * 2, recipe).members
    assert [together[i].charged_steps for i in range(2)] == [8, 16]


def test_a_run_under_a_schedule_of_its_own_is_that_of_a_recipe_with_it(
    tiny: Callable[..., BaseModel],
) -> None:
    base, record = tiny(), random_record(10)
    linear = RECIPE.model_copy(update={"schedule": "linear"})
    runs = [replace(make_run(2, 10, t), phase="memft") for t in (8, 16)]
    own = [replace(run, point=replace(run.point, schedule="linear")) for run in runs]
    mixed = train(base, [*own, *runs], [[record]] * 4, RECIPE).members
    by_recipe = train(base, runs, [[record]] * 2, linear).members
    plain = train(base, runs, [[record]] * 2, RECIPE).members
    for i in range(2):
        assert mixed[i].step_losses == pytest.approx(by_recipe[i].step_losses, rel=1e-5)
        assert mixed[2 + i].step_losses == pytest.approx(plain[i].step_losses, rel=1e-5)
        assert mixed[i].step_losses[-1] != pytest.approx(plain[i].step_losses[-1], rel=1e-3)
    assert [mixed[i].charged_steps for i in range(4)] == [8, 16, 3 + 2, 3 + 10]


def test_runs_whose_recall_is_compared_never_decay_early(tiny: Callable[..., BaseModel]) -> None:
    recipe = RECIPE.model_copy(update={"stop_gain": 1e6})
    runs = [make_run(1, 20, 80), replace(make_run(1, 20, 160), phase="memft")]
    members = train(tiny(), runs, [[random_record(20)]] * 2, recipe).members
    assert [len(members[i].step_losses) for i in range(2)] == [32 + 20, 160]


@pytest.mark.parametrize(("share", "last"), [(0.0, 48), (0.25, 32 + 20)])
def test_many_records_decay_early_only_after_enough_epochs(
    tiny: Callable[..., BaseModel], share: float, last: int
) -> None:
    recipe = RECIPE.model_copy(update={"batch_size": 5, "stop_gain": 1e6, "decay_share": share})
    records = [random_record(4, i) for i in range(10)]
    runs = [make_run(2, 40, 80), make_run(2, 20, 80)]
    members = train(tiny(), runs, [records, records[:5]], recipe, MemftRules(temporal=True)).members
    # Two steps an epoch: a last quarter of eight epochs ends at step 64 at the earliest.
    assert len(members[0].step_losses) == (64 if share == 0.0 else 80)
    assert len(members[1].step_losses) == last


def test_followers_of_a_diverged_trunk_diverge_with_it(
    tiny: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Recipe.rate_at

    def broken(self: Recipe, step: float, *rest: Any) -> float:
        return float("inf") if step == 3 else original(self, step, *rest)

    monkeypatch.setattr(Recipe, "rate_at", broken)
    runs = [make_run(2, 10, t) for t in (16, 32)]
    members = train(tiny(), runs, [[random_record(10)]] * 2, RECIPE).members
    assert members[0].divergence and members[1].divergence
    assert len(members[0].step_losses) == len(members[1].step_losses) < 12
