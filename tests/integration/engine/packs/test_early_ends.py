"""Runs of a pack that end early, against the same runs alone or to their whole budget: hundreds of
steps each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.scheduling import threshold_stopping
from pmlray.engine.scheduling.plateau_stopping import largest_change
from pmlray.types import MemftRules
from tests.integration.engine.packs import test_threshold_stopping, test_trunks
from tests.integration.engine.packs.test_threshold_stopping import RECORDS, RULES
from tests.unit.engine.conftest import (  # noqa: F401
    Trained,
    fresh_tiny,
    make_run,
    random_record,
    tiny,
    tiny_folder,
    train,
)
from tests.unit.engine.scheduling import test_redistribution

pytestmark = pytest.mark.slow


def test_a_saturated_run_ends_early_within_the_promised_bias(
    tiny: Callable[..., BaseModel],  # noqa: F811
) -> None:
    base, record = tiny(), random_record(12)
    # The second is the trunk of the first, which would branch off after both have saturated.
    runs = [make_run(16, 12, t) for t in (140, 160)] + [make_run(1, 40, 160)]
    runs.append(replace(make_run(16, 12, 160), phase="memft"))
    records = [[record], [record], [random_record(40, 1)], [record]]
    # The tiny model's last norm keeps its losses above 0.117 nats.
    recipe = test_trunks.RECIPE.model_copy(update={"learning_rate": 3e-2})
    full = train(base, runs, records, recipe).members
    stopped = train(base, runs, records, recipe.model_copy(update={"stop_loss": 0.15})).members
    for i in (0, 1):
        assert len(stopped[i].step_losses) == len(stopped[0].step_losses) < 105
        assert 0 < stopped[i].scores.mean_nll - full[i].scores.mean_nll <= 0.15
        assert stopped[i].charged_steps == len(stopped[0].step_losses) / 2
        assert stopped[i].curve[-1] == (len(stopped[i].step_losses), stopped[i].scores.mean_nll)
    # One that has something left to learn goes on, and so do those whose recall is compared.
    assert len(stopped[2].step_losses) == 160
    assert len(stopped[3].step_losses) == 160


def test_a_flat_run_decays_early_with_others_or_alone(tiny: Callable[..., BaseModel]) -> None:  # noqa: F811
    base, gain = tiny(), 0.3
    recipe = test_trunks.RECIPE.model_copy(update={"stop_gain": gain, "learning_rate": 2e-2})
    budgets = (48, 96, 144)
    runs = [make_run(1, 40, t) for t in budgets]
    record = random_record(40)
    full = train(base, runs, [[record]] * 3, recipe.model_copy(update={"stop_gain": 0.0})).members
    together = train(base, runs, [[record]] * 3, recipe).members
    for i, run in enumerate(runs):
        alone = train(base, [run], [[record]], recipe).members[0]
        decay = run.point.train_steps // 4
        start = len(alone.step_losses) - decay
        # Told by the steps that the full run took too, then its own decay, of unchanged length.
        assert start % 16 == 0 and decay * 3 / 2 <= start <= decay * 3
        reference = full[i].step_losses[:start]
        assert alone.step_losses[: start + 1] == pytest.approx(
            [*reference, full[2].step_losses[start]], rel=1e-5
        )
        first = next(
            (s for s in range(16, decay * 3, 16)
             if s * 2 >= decay * 3
             and largest_change(reference[:s][s // 2 :], s, decay * 3, 1) <= gain),
            decay * 3,
        )  # fmt: skip
        assert start == first
        assert together[i].step_losses == pytest.approx(alone.step_losses, rel=1e-5)
        assert alone.curve[-1] == (start + decay, alone.scores.mean_nll)
        assert dict(together[i].curve) == pytest.approx(dict(alone.curve), rel=1e-5)
        assert alone.charged_steps == len(alone.step_losses)
        assert abs(alone.scores.mean_nll - full[i].scores.mean_nll) <= gain
    lengths = [len(together[i].step_losses) for i in range(3)]
    assert any(n < t for n, t in zip(lengths, budgets, strict=True))
    # Every step of the trunk once, and every decay.
    decays = sum(t // 4 for t in budgets)
    trunk = max(n - t // 4 for n, t in zip(lengths, budgets, strict=True))
    assert sum(together[i].charged_steps for i in range(3)) == pytest.approx(trunk + decays)


def train_both(base: BaseModel) -> Trained:
    # Two budgets of one run, which share a trunk, a curriculum, and one too small to hold it.
    runs = [make_run(16, 15, 100, "memft_ot"), make_run(16, 15, 140, "memft_ot"),
            make_run(16, 15, 140, "memft_sw"), make_run(1, 60, 120, "memft_ot")]  # fmt: skip
    runs = [replace(run, phase="memft") for run in runs]
    large = [random_record(20, 7 + i) for i in range(3)]
    return train(
        base, runs, [RECORDS, RECORDS, RECORDS, large], test_threshold_stopping.RECIPE, RULES
    )


def test_a_run_that_recalls_everything_ends_with_the_same_adapter(
    tiny: Callable[..., BaseModel],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny()
    ended = train_both(base)
    monkeypatch.setattr(threshold_stopping, "STEPS_BETWEEN_CHECKS", 10**6)
    whole = train_both(base)
    budgets = [100, 140, 140, 120]
    assert [len(whole.members[i].step_losses) for i in range(4)] == budgets
    for i in range(3):
        short, full = ended.members[i], whole.members[i]
        assert len(short.step_losses) < budgets[i] - 16 and len(short.step_losses) % 16 == 0
        assert min(short.scores.token_p) > 0.5
        assert short.charged_steps < full.charged_steps
        ((short_a, short_b),) = ended.model.lora.weights(i).values()
        ((full_a, full_b),) = whole.model.lora.weights(i).values()
        assert torch.equal(short_a, full_a) and torch.equal(short_b, full_b)
    assert len(ended.members[3].step_losses) == 120
    assert min(ended.members[3].scores.token_p) < 0.5


def test_freed_steps_go_to_the_others_at_equal_work(tiny: Callable[..., BaseModel]) -> None:  # noqa: F811
    """Packed and alone alike; the run goes on for more steps than its budget names, and ends at
    once when nothing is left."""
    base = tiny()
    rules = MemftRules(margin=0.5)
    runs = [make_run(16, 24, 90, "memft_rd"), make_run(1, 24, 60, "sft"),
            make_run(16, 8, 400, "memft_rd")]  # fmt: skip
    records = [[random_record(run.point.seq_len)] for run in runs]
    together = train(base, runs, records, test_redistribution.RECIPE, rules).members
    for i, run in enumerate(runs):
        alone = train(base, [run], [records[i]], test_redistribution.RECIPE, rules).members[0]
        # Later on, a token that rounds to the other side of a threshold may tell them apart.
        assert together[i].step_losses[:60] == pytest.approx(alone.step_losses[:60], rel=1e-4), run
    assert len(together[0].step_losses) > 90 and len(together[1].step_losses) == 60
    assert len(together[2].step_losses) < 200 and together[2].scores.recall.exact == 1.0
    assert min(together[2].scores.token_p) > 0.5
