"""Runs under the threshold rule end once everything is recalled, and lose nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine import settle
from pmlray.engine.base_model import BaseModel
from pmlray.types import MemftRules
from tests.unit.engine.conftest import Trained, make_run, random_record, train

RECIPE = Recipe(learning_rate=2e-2, batch_size=2)
RULES = MemftRules(temporal=True)
RECORDS = [random_record(5, i) for i in range(3)]


def train_both(base: BaseModel, recipe: Recipe = RECIPE, rules: MemftRules = RULES) -> Trained:
    # Two budgets of one run, which share a trunk, a curriculum, and one too small to hold it.
    runs = [make_run(16, 15, 100, "memft_ot"), make_run(16, 15, 140, "memft_ot"),
            make_run(16, 15, 140, "memft_sw"), make_run(1, 60, 120, "memft_ot")]  # fmt: skip
    runs = [replace(run, phase="memft") for run in runs]
    large = [random_record(20, 7 + i) for i in range(3)]
    return train(base, runs, [RECORDS, RECORDS, RECORDS, large], recipe, rules)


def test_a_run_that_recalls_everything_ends_with_the_same_adapter(
    tiny: Callable[..., BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    ended = train_both(base)
    monkeypatch.setattr(settle, "STEPS_BETWEEN_CHECKS", 10**6)
    whole = train_both(base)
    budgets = [100, 140, 140, 120]
    assert [len(whole.members[i].step_losses) for i in range(4)] == budgets
    for i in range(3):
        short, full = ended.members[i], whole.members[i]
        assert len(short.step_losses) < budgets[i] - 16 and len(short.step_losses) % 16 == 0
        assert min(short.scores.token_p) > 0.5
        assert short.charged_steps < full.charged_steps
        for own, other in zip(
            ended.model.lora.weights(i), whole.model.lora.weights(i), strict=True
        ):
            assert torch.equal(own, other)
    assert len(ended.members[3].step_losses) == 120
    assert min(ended.members[3].scores.token_p) < 0.5


@pytest.mark.parametrize(
    ("dropout", "compat"), [(0.1, "mended"), (0.0, "paper")], ids=["dropout", "paper"]
)
def test_a_run_that_would_still_move_goes_on(
    tiny: Callable[..., BaseModel], dropout: float, compat: str
) -> None:
    recipe = RECIPE.model_copy(update={"dropout": dropout})
    rules = replace(RULES, compat=compat)
    run = replace(make_run(16, 15, 100, "memft_ot"), phase="memft")
    (member,) = train(tiny(), [run], [RECORDS], recipe, rules).members.values()
    assert len(member.step_losses) == 100 and min(member.scores.token_p) > 0.5


def test_plain_fine_tuning_has_no_threshold_to_end_at(tiny: Callable[..., BaseModel]) -> None:
    run = replace(make_run(16, 15, 100), phase="memft")
    (member,) = train(tiny(), [run], [RECORDS], RECIPE, RULES).members.values()
    assert len(member.step_losses) == 100 and min(member.scores.token_p) > 0.5
