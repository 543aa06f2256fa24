"""What a run is predicted to cost, against sums done by hand."""

from __future__ import annotations

import pytest

from pmlray.design import CostModel, prior_cost
from pmlray.types import DesignPoint


def test_cost_learns_the_measured_rate() -> None:
    prior = prior_cost(32_000_000, 28_000_000, flops=3e11, prompt_tokens=16, batch_records=None)
    point = DesignPoint(4, 64, 200)
    learnt = prior.learn([(point, 200, 50.0), (DesignPoint(2, 144, 200), 100, 100.0)])
    assert not prior.measured and learnt.measured
    assert learnt.predict(point) == pytest.approx(150 * 200 * 80 / (200 * 80 + 100 * 160))
    assert prior.learn([]) is prior


def test_the_first_guess_counts_the_head_where_tokens_are_scored() -> None:
    point = DesignPoint(2, 280, 400)
    book = prior_cost(31_860_000, 28_310_000, flops=3e11, prompt_tokens=16, batch_records=4)
    # Four records of 16 + 10 tokens a step, of which 40 are scored.
    flops = 4 * (4 * 26 * 31_860_000 + 40 * 28_310_000)
    assert book.predict(point) == pytest.approx(400 * flops / 3e11)
    text = prior_cost(31_860_000, 28_310_000, flops=3e11, prompt_tokens=16, batch_records=None)
    assert text.predict(point) == pytest.approx(400 * 4 * 296 * (31_860_000 + 28_310_000) / 3e11)


def test_shorter_budgets_of_a_packs_run_cost_their_decay() -> None:
    cost = CostModel(1e-3, prompt_tokens=10, batch_records=None, decay_share=0.2)
    short, middle, long = (DesignPoint(4, 90, t) for t in (25, 50, 100))
    assert cost.added(long, []) == pytest.approx(10.0)
    assert cost.added(short, [100]) == pytest.approx(0.2 * 2.5)
    # The trunk is made longer: what it was before is now a branch with its own decay.
    assert cost.added(long, [25, 50]) == pytest.approx(10.0 + 0.2 * 5.0 - 5.0)
    assert cost.added(middle, [25, 100]) == pytest.approx(0.2 * 5.0)
    apart = CostModel(1e-3, prompt_tokens=10, batch_records=None)
    assert apart.added(short, [100]) == pytest.approx(2.5)


def test_a_step_over_many_records_holds_a_batch_of_prompts_and_targets() -> None:
    cost = CostModel(1e-3, prompt_tokens=4, batch_records=4)
    assert cost.tokens_per_step(DesignPoint(2, 280, 400)) == 4 * 14
    assert cost.tokens_per_step(DesignPoint(2, 20, 400)) == 2 * 14
