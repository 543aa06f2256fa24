"""Runs under the threshold rule end once everything is recalled, and lose nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.types import MemftRules
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=2e-2, batch_size=2)
RULES = MemftRules(temporal=True)
RECORDS = [random_record(5, i) for i in range(3)]


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
