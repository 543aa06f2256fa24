"""Certificates: what twice the steps would change, read off a curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

from pmlray.config import Recipe
from pmlray.errors import DataError
from pmlray.law.validation.convergence import CONVERGED_FALL, Certificate, certify

Curve = list[tuple[int, float]]
BASE = 12.0


def dose_of(recipe: Recipe, train_steps: int) -> list[float]:
    """R(s) as a plain loop over the engine's own learning rates."""
    doses = [0.0]
    for step in range(train_steps):
        doses.append(doses[-1] + recipe.rate_at(step, train_steps) / recipe.learning_rate)
    return doses


def powers_of_two(train_steps: int) -> list[int]:
    return sorted({0, train_steps, *(2**i for i in range(train_steps.bit_length()))})


def curve_of(loss: Callable[[float], float], recipe: Recipe, train_steps: int) -> Curve:
    doses = dose_of(recipe, train_steps)
    return [(step, loss(doses[step])) for step in powers_of_two(train_steps)]


def certified(curve: Curve, train_steps: int, recipe: Recipe) -> Certificate:
    return certify(
        curve,
        train_steps,
        schedule=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        decay_share=recipe.decay_share,
        stop_loss=recipe.stop_loss,
    )


RECIPES = [
    Recipe(learning_rate=1e-2),
    Recipe(learning_rate=1e-2, decay_share=0.5, warmup_steps=20),
    Recipe(learning_rate=1e-2, decay_share=0.0),
    Recipe(learning_rate=1e-2, schedule="linear", warmup_steps=0),
    Recipe(learning_rate=1e-2, schedule="linear", warmup_steps=10),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("train_steps", [37, 160, 400])
def test_a_fall_in_proportion_to_the_learning_rate_is_told_exactly(
    recipe: Recipe, train_steps: int
) -> None:
    now, then = (dose_of(recipe, steps)[-1] for steps in (train_steps, 2 * train_steps))
    speed = 4.0 / then
    found = certified(
        curve_of(lambda r: BASE - speed * r, recipe, train_steps), train_steps, recipe
    )
    assert found.slope == pytest.approx(speed * (then - now))
    assert found.status == "optimisation_limited"


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_a_slowing_run_is_told_nearly(power: float) -> None:
    recipe = Recipe(learning_rate=1e-2)

    def loss(dose: float) -> float:
        """Speed (1 + dose)^-power."""
        x = 1.0 + dose
        return 60.0 - (math.log(x) if power == 1 else (x ** (1 - power) - 1) / (1 - power))

    for train_steps in (160, 500):
        now, then = (dose_of(recipe, steps)[-1] for steps in (train_steps, 2 * train_steps))
        found = certified(curve_of(loss, recipe, train_steps), train_steps, recipe)
        assert found.slope == pytest.approx(loss(now) - loss(then), rel=0.2)


def test_losses_scale_and_shift() -> None:
    recipe = Recipe(learning_rate=1e-2)
    curve = curve_of(lambda r: 2.0 + 6.0 / (1 + r / 50), recipe, 160)
    plain = certified(curve, 160, recipe).slope
    assert certified([(s, 3.0 + x) for s, x in curve], 160, recipe).slope == pytest.approx(plain)
    assert certified([(s, 2 * x) for s, x in curve], 160, recipe).slope == pytest.approx(2 * plain)


def test_no_run_falls_below_nothing() -> None:
    curve = curve_of(lambda r: 10.0 - 9.0 * r / 145, Recipe(learning_rate=1e-2), 160)
    assert certified(curve, 160, Recipe(learning_rate=1e-2)).slope == pytest.approx(curve[-1][1])


STATUS_CASES: list[tuple[Callable[[float], float], str]] = [
    (lambda r: BASE - 0.05 * r, "optimisation_limited"),
    (lambda r: 4.0 + 8.0 * math.exp(-r / 5), "converged"),
    (lambda r: 4.0 + 0.1 * r, "diverged"),
    (lambda r: math.nan if r > 50 else BASE, "diverged"),
    (lambda r: 12.0 * math.exp(-r / 5), "saturated"),
    # Flat, with noise: the last stretch rises.
    (lambda r: 4.0 + 1e-4 * r if r else BASE, "converged"),
]


@pytest.mark.parametrize(("loss", "status"), STATUS_CASES)
def test_status(loss: Callable[[float], float], status: str) -> None:
    found = certified(
        curve_of(loss, Recipe(learning_rate=1e-2), 160), 160, Recipe(learning_rate=1e-2)
    )
    assert found.status == status
    assert math.isnan(found.slope) == (status == "diverged")
    if status == "converged":
        assert 0 <= found.slope < CONVERGED_FALL


def test_a_run_that_began_its_decay_early_is_judged_by_its_own_decay() -> None:
    recipe = Recipe(learning_rate=1e-2)
    # It was spared 60 of 128 steps at the constant rate; its 32 of decay are those of 160.
    doses, total = [0.0], 100
    for step in range(total):
        rate = min(1.0, (step + 1) / 8, (total - step) / 32)
        doses.append(doses[-1] + rate)
    speed = 0.01
    curve = [(s, BASE - speed * doses[s]) for s in powers_of_two(total)]
    found = certified(curve, 160, recipe)
    assert found.slope == pytest.approx(speed * (dose_of(recipe, 320)[-1] - doses[-1]))


def test_the_gradient_norm_is_told_and_changes_nothing() -> None:
    recipe, curve = (
        Recipe(learning_rate=1e-2),
        curve_of(lambda r: BASE - 0.05 * r, Recipe(learning_rate=1e-2), 160),
    )
    judge: Callable[..., Certificate] = partial(
        certify, curve, 160, schedule="warmup_constant_decay", warmup_steps=8, decay_share=0.2,
        stop_loss=0.01,
    )  # fmt: skip
    told, without = judge(grad_norm=0.25), certified(curve, 160, recipe)
    assert (told.status, told.slope) == (without.status, without.slope)
    assert "gradient norm before the decay was 0.25" in told.reason
    assert "gradient" not in without.reason


def test_a_linear_run_that_ended_early_had_not_decayed() -> None:
    recipe, speed, ended = Recipe(learning_rate=1e-2, schedule="linear", warmup_steps=0), 0.04, 64
    doses = dose_of(recipe, 160)
    curve = [(s, BASE - speed * doses[s]) for s in powers_of_two(ended)]
    found = certified(curve, 160, recipe)
    assert found.slope == pytest.approx(speed * (dose_of(recipe, 320)[-1] - doses[ended]))


def test_two_points_are_no_curve() -> None:
    with pytest.raises(DataError, match="at least 3"):
        certified([(0, 12.0), (160, 3.0)], 160, Recipe(learning_rate=1e-2))
