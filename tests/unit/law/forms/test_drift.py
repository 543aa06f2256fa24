"""Laws whose exponents drift: derivatives, the place where they reach a loss, their stored form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pmlray.law import Form, Law, PowerLaw, law_from_json
from pmlray.law.fitting.sample_predictions import predict_samples
from pmlray.law.forms.drift import Drift, rising_place
from pmlray.law.forms.registry import blank_law

FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")
CASES = pytest.mark.parametrize(("form", "budget"), list(product(FORMS, (False, True))))
COEFS = (-0.06, 0.05, -0.04, 0.03, -0.02, -0.05)
# Above and below the points, in rank, length and steps.
ENDS = (0.15, -0.1, -0.2, 0.1, 0.05, -0.15)
LOW, HIGH = (-1.5, -1.2, -0.7), (1.3, 1.4, 0.9)
RNG = np.random.default_rng(0)


def law_of(form: Form, *, budget: bool, coefs: tuple[float, ...] = COEFS) -> Law:
    axes = 3 if budget else 2
    coefs = (*coefs[: 6 if budget else 3], *ENDS[: 2 * axes])
    middle = (math.log(5.0), math.log(900.0), math.log(300.0))
    drift = Drift(*middle, LOW[:axes], HIGH[:axes], coefs)
    own = {"ceiling": [math.log(4.0)], "broken": [0.2, math.log(12.0)]}.get(form, [])
    steps = [0.4] if budget else []
    law = blank_law(form, 12.0, 250.0, budget, drift)
    return law.with_params([5.0, 0.8, 0.7, 0.3, *steps, *drift.coefs, *own])


@CASES
def test_the_jacobian_agrees_with_central_differences(form: Form, budget: bool) -> None:
    law = law_of(form, budget=budget)
    r, length = 2.0 ** RNG.uniform(0, 5, 12), RNG.uniform(100, 9000, 12)
    t = RNG.uniform(100, 900, 12)
    jac = law.jacobian(r, length, t)
    assert jac.shape == (12, len(law.param_names)) == (12, law.params.size)
    for p, name in enumerate(law.param_names):
        step = 1e-6 * np.eye(law.params.size)[p]
        ends = [law.with_params(law.params + s * step).predict(r, length, t) for s in (1, -1)]
        np.testing.assert_allclose(
            jac[:, p], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7, err_msg=name
        )


def test_the_drift_is_the_formula_of_its_docstring() -> None:
    law = law_of("power", budget=True)
    r, length, t = 11.0, 2500.0, 700.0
    u, v, s = math.log(r / 5.0), math.log(900.0 / length), math.log(t / 300.0)
    a, b, c, d, e, f = COEFS
    q = a * u * u + b * u * v + c * v * v + d * u * s + e * v * s + f * s * s
    # Each a point among the others.
    assert all(x < y < z for x, y, z in zip(LOW, (u, v, s), HIGH, strict=True))
    plain = math.exp(5.0) * r**0.8 * length**-0.7 * (t / 250.0) ** 0.4
    assert float(law.predict(r, length, t)) == pytest.approx(plain * math.exp(q) + 0.3)
    # In the middle of the points it is the power law.
    middle = (5.0, 900.0, 300.0)
    assert isinstance(law, PowerLaw)
    straight = replace(law, drift=None).predict(*middle)
    assert float(law.predict(*middle)) == pytest.approx(float(straight))


@CASES
@pytest.mark.parametrize("drifts", [True, False])
def test_many_samples_at_once_are_those_of_one_law_at_a_time(
    form: Form, budget: bool, drifts: bool
) -> None:
    law = law_of(form, budget=budget)
    if not drifts:
        own = {"ceiling": 1, "broken": 2}.get(form, 0)
        kept = np.r_[law.params[: 5 if budget else 4], law.params[law.params.size - own :]]
        law = blank_law(form, 12.0, 250.0, budget).with_params(kept)
    params = law.params + 0.05 * RNG.standard_normal((4, law.params.size))
    ranks, lengths = np.array([[0.5], [3.0], [40.0]]), np.array([80.0, 9000.0])
    steps = 700.0 if budget else 0.0
    caps = RNG.uniform(10.0, 14.0, (4, 1, 1)) + np.array([0.0, 0.5])
    at_once = predict_samples(law, params, ranks, lengths, steps, caps)
    assert at_once.shape == (4, 3, 2)
    for found, own, cap in zip(at_once, params, caps, strict=True):
        expected = law.with_params(own).predict(ranks, lengths, steps, cap)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    single = predict_samples(law, params, 3.0, 80.0, steps, caps[:, 0, 0])
    np.testing.assert_allclose(single, at_once[:, 1, 0], rtol=1e-12)


def test_without_a_budget_term_steps_are_not_read() -> None:
    law = law_of("ceiling", budget=False)
    assert float(law.predict(4.0, 500.0, 0.0)) == float(law.predict(4.0, 500.0, 700.0))


def test_beyond_the_points_the_bend_ends_and_another_exponent_holds() -> None:
    law = law_of("power", budget=False)

    def exponent(rank: float) -> float:
        ends = [float(law.predict(rank * math.exp(x), 900.0, 0.0)) - 0.3 for x in (1e-5, -1e-5)]
        return math.log(ends[0] / ends[1]) / 2e-5

    top, bottom = 5.0 * math.exp(HIGH[0]), 5.0 * math.exp(LOW[0])
    # At 900 tokens, the middle, only the bend in rank counts.
    assert exponent(0.9 * top) == pytest.approx(0.8 + 2 * COEFS[0] * math.log(0.9 * top / 5.0))
    assert exponent(1.1 * top) == pytest.approx(0.8 + ENDS[0]) == pytest.approx(exponent(50 * top))
    assert exponent(0.9 * bottom) == pytest.approx(0.8 + ENDS[1])
    # Without a jump.
    at = [float(law.predict(top * factor, 900.0, 0.0)) for factor in (1 - 1e-9, 1 + 1e-9)]
    assert at[0] == pytest.approx(at[1], rel=1e-7)


def bent(x: np.ndarray, ends: tuple[float, float], line: np.ndarray) -> np.ndarray:
    """A quadratic function between the ends, straight beyond them."""
    value, slope, bend, above, below = line
    u = np.clip(x, *ends)
    beyond = above * np.maximum(x - ends[1], 0.0) + below * np.minimum(x - ends[0], 0.0)
    return value + slope * u + bend * u * u + beyond


def test_the_rising_place_is_the_first_one_of_a_fine_scan() -> None:
    grid = np.linspace(-14.0, 14.0, 28001)
    kinds = {"before": 0, "among": 0, "beyond": 0, "never": 0, "always": 0}
    for _ in range(400):
        ends = tuple(np.sort(RNG.uniform(-3.0, 3.0, 2)).tolist())
        line = RNG.normal(0.0, 1.0, 5) * (3.0, 1.0, 1.0, 1.0, 1.0)
        x = rising_place(lambda x, e=ends, c=line: bent(x, e, c), 0.0, *ends)
        above = bent(grid, ends, line) >= 0.0
        rises = np.flatnonzero(~above[:-1] & above[1:])
        if not rises.size:
            assert x == (-math.inf if above.all() else math.inf)
            kinds["always" if above.all() else "never"] += 1
        else:
            assert grid[rises[0]] <= x <= grid[rises[0] + 1]
            assert bent(np.array(x), ends, line) == pytest.approx(0.0, abs=1e-9)
            kinds["before" if x < ends[0] else "among" if x <= ends[1] else "beyond"] += 1
    assert min(kinds.values()) >= 10, kinds


@pytest.mark.parametrize(
    ("value", "slope", "bend", "expected"),
    [
        (-2.0, 0.5, 0.0, 4.0),
        (1.0, 0.0, 0.0, -math.inf),
        (-1.0, 0.0, 0.0, math.inf),
        (-1.0, -1.0, 0.0, math.inf),
        (-1.0, 0.0, 1.0, 1.0),
        (1.0, 0.0, -1.0, -1.0),
    ],
)
def test_the_rising_place_of_plain_lines_and_parabolas(
    value: float, slope: float, bend: float, expected: float
) -> None:
    x = rising_place(lambda x: value + slope * x + bend * x * x, 0.0, -5.0, 6.0)
    assert x == pytest.approx(expected)


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 2.5), (1.0, -5.0 / 3.0)])
def test_the_rising_place_where_an_axis_was_not_varied(value: float, expected: float) -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return value + np.where(x > 0.5, 0.5 * (x - 0.5), 0.4615384615384615 * (x - 0.5))

    assert rising_place(function, 0.0, 0.5, 0.5) == pytest.approx(expected)


@CASES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_inverting_gives_the_place_where_the_law_predicts_the_loss(
    form: Form, budget: bool, sign: float
) -> None:
    law = law_of(form, budget=budget, coefs=tuple(sign * c for c in COEFS))
    for wanted in (2.0, 4.0, 6.0):
        rank = law.invert_rank(700.0, 200.0, wanted)
        assert 0.1 < rank < 1e3
        assert float(law.predict(rank, 700.0, 200.0)) == pytest.approx(wanted, rel=1e-6)
        assert float(law.predict(1.01 * rank, 700.0, 200.0)) > wanted
        length = law.invert_len(6.0, 200.0, wanted)
        assert float(law.predict(6.0, length, 200.0)) == pytest.approx(wanted, rel=1e-6)
        assert float(law.predict(6.0, 1.01 * length, 200.0)) < wanted
        if budget:
            near = float(law.predict(6.0, 900.0, 200.0)) * (1.0 + 0.02 * (wanted - 4.0))
            steps = law.invert_steps(6.0, 900.0, near)
            assert float(law.predict(6.0, 900.0, steps)) == pytest.approx(near, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_above_the_laws_top_is_never_reached(form: Form) -> None:
    # An exponent that falls below 0 among the points, and stays there beyond them.
    law = law_of(form, budget=False, coefs=(-0.4, 0.0, 0.0))
    drift = law.drift
    assert drift is not None
    law = replace(law, drift=replace(drift, coefs=(-0.4, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0)))  # type: ignore[type-var]
    ranks = np.geomspace(1e-3, 1e6, 4000)
    top = float(law.predict(ranks, 4000.0, 0.0).max())
    assert top < 11.9
    assert law.invert_rank(4000.0, 0.0, top + 0.05) == math.inf
    below = law.invert_rank(4000.0, 0.0, top - 0.05)
    assert float(law.predict(below, 4000.0, 0.0)) == pytest.approx(top - 0.05, rel=1e-6)
    # On its way up, not where it falls again.
    assert float(law.predict(1.1 * below, 4000.0, 0.0)) > top - 0.05
    assert law.invert_rank(4000.0, 0.0, 0.2) == 0.0


@CASES
def test_a_drift_survives_json(form: Form, budget: bool) -> None:
    law = law_of(form, budget=budget)
    again = law_from_json(json.loads(json.dumps(law.to_json())))
    assert again == law and again.drift == law.drift is not None
    assert float(again.predict(3.0, 200.0, 90.0)) == float(law.predict(3.0, 200.0, 90.0))
    # Laws that were stored before there was a drift have none.
    old = {name: value for name, value in law.to_json().items() if name != "drift"}
    assert law_from_json(old).drift is None


def test_parameters_name_the_drift_behind_those_of_the_power_law() -> None:
    names = ("log_coef", "rank_exponent", "len_exponent", "offset")
    drift = ("rank_drift", "rank_len_drift", "len_drift")
    more = ("rank_budget_drift", "len_budget_drift", "budget_drift")
    ends = ("rank_above", "rank_below", "len_above", "len_below")
    assert law_of("power", budget=False).param_names == (*names, *drift, *ends)
    ends += ("budget_above", "budget_below")
    full = (*names, "budget_exponent", *drift, *more, *ends)
    assert law_of("ceiling", budget=True).param_names == (*full, "log_sharpness")
    for form in FORMS:
        law = law_of(form, budget=True)
        np.testing.assert_allclose(law.with_params(law.params + 0.25).params, law.params + 0.25)
