"""The plateau rule on curves whose future is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmlray.config import Recipe
from pmlray.engine.scheduling.plateau_stopping import (
    LONGEST_AHEAD,
    N_BLOCKS,
    broken_runs,
    can_stop,
    largest_change,
)

STEPS, UNTIL = 256, 512


def recent(curve: Callable[[np.ndarray], np.ndarray], noise: float = 0.0, seed: int = 0) -> list:
    losses = curve(np.arange(STEPS // 2, STEPS, dtype=float))
    return (losses + noise * np.random.default_rng(seed).standard_normal(STEPS // 2)).tolist()


@given(st.floats(-2, 2), st.floats(-10, 10), st.integers(STEPS + 1, UNTIL))
def test_a_line_in_log_steps_is_carried_on_exactly(slope: float, level: float, until: int) -> None:
    found = largest_change(recent(lambda s: level + slope * np.log(s)), STEPS, until, 1)
    assert found == pytest.approx(abs(slope) * math.log(until / STEPS), abs=1e-9)


def test_noise_widens_by_the_slopes_standard_error() -> None:
    losses = np.array(recent(lambda s: 3 - 0.1 * np.log(s), 0.05))
    limits = []
    for n in (STEPS // 2, STEPS // 4):
        steps = np.arange(STEPS - n, STEPS)
        x = np.log(steps).reshape(N_BLOCKS, -1).mean(axis=1)
        y = losses[-n:].reshape(N_BLOCKS, -1).mean(axis=1)
        (slope, _), cov = np.polyfit(x, y, 1, cov=True)
        # Student's t, 97.5 %, 6 degrees of freedom, from a table.
        limits.append(abs(slope) + 2.4469 * math.sqrt(cov[0, 0]))
    expected = max(limits) * math.log(UNTIL / STEPS)
    assert largest_change(losses.tolist(), STEPS, UNTIL, 1) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "curve",
    [
        lambda s: 2 + 40 / s,
        lambda s: 2 + 3 * s**-0.5,
        lambda s: 8 - 0.4 * np.log(s),
        lambda s: 5 * np.exp(-s / 300),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_what_is_still_to_come_is_within_the_limit(
    curve: Callable[[np.ndarray], np.ndarray], noise: float
) -> None:
    ends = curve(np.array([STEPS, UNTIL], dtype=float))
    coming = abs(ends[1] - ends[0])
    kept = [
        coming <= largest_change(recent(curve, noise, seed), STEPS, UNTIL, 1) + 1e-9
        for seed in range(200)
    ]
    assert np.mean(kept) >= 0.97


@pytest.mark.parametrize("turn", [200, 224])
@pytest.mark.parametrize("slope", [-0.01, 0.01])
def test_a_plateau_that_has_begun_to_break_is_none(turn: int, slope: float) -> None:
    losses = recent(lambda s: 4 + slope * np.maximum(0, s - turn), 0.01)
    assert largest_change(losses, STEPS, UNTIL, 1) > 0.5


def test_does_not_see_how_high_a_curve_is() -> None:
    high = recent(lambda s: 9 + 5 / s, 0.01)
    low = (np.array(high) - 8.5).tolist()
    found = largest_change(high, STEPS, UNTIL, 1)
    assert largest_change(low, STEPS, UNTIL, 1) == pytest.approx(found, abs=1e-9)
    assert largest_change((-np.array(high)).tolist(), STEPS, UNTIL, 1) == pytest.approx(found)


def test_records_that_take_turns_are_compared_by_whole_epochs() -> None:
    # Four records of very different losses, one a step: within an epoch the curve is a saw.
    turns = recent(lambda s: 3 + (s % 4))
    assert largest_change(turns, STEPS, UNTIL, 4) == pytest.approx(0.0, abs=1e-9)
    # The last quarter must hold eight epochs.
    assert math.isfinite(largest_change(turns, STEPS, UNTIL, 8))
    assert largest_change(turns, STEPS, UNTIL, 9) == math.inf


def test_what_is_not_a_number_stops_nothing() -> None:
    losses = recent(lambda s: 3 + 0 * s)
    losses[-1] = math.nan
    assert not largest_change(losses, STEPS, UNTIL, 1) <= 1.0


def test_only_the_constant_rates_later_half_can_be_cut() -> None:
    recipe = Recipe(learning_rate=1e-2, warmup_steps=8, decay_share=0.25, stop_gain=0.1)
    assert LONGEST_AHEAD == 2
    assert [s for s in range(200) if can_stop(recipe, s, 160)] == list(range(60, 120))
    slow = recipe.model_copy(update={"warmup_steps": 40})
    assert [s for s in range(200) if can_stop(slow, s, 160)] == list(range(80, 120))
    for off in ({"stop_gain": 0.0}, {"schedule": "linear"}):
        assert not any(can_stop(recipe.model_copy(update=off), s, 160) for s in range(200))


def test_a_run_whose_loss_is_no_number_is_told_at_the_next_look() -> None:
    losses = torch.ones(40, 4)
    losses[14, 1] = math.nan
    losses[15, 1] = losses[15, 2] = math.inf
    losses[15:, 3] = math.nan
    assert broken_runs(losses, 15, [0, 1, 2]) == []
    # The fourth has not begun: its losses are not a number, and it is not active.
    assert broken_runs(losses, 16, [0, 1, 2]) == [1, 2]
    assert broken_runs(losses, 32, [0, 1, 2]) == []
    assert broken_runs(losses, 0, [0, 1, 2, 3]) == []
