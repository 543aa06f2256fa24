"""Laws whose exponents drift: derivatives, the place where they reach a loss, their stored form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pmlray.law import Form, Law, PowerLaw, law_from_json
from pmlray.law.drift import Drift, rising_root
from pmlray.law.forms import blank_law

FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")
CASES = pytest.mark.parametrize(("form", "budget"), list(product(FORMS, (False, True))))
COEFS = (-0.06, 0.05, -0.04, 0.03, -0.02, -0.05)
RNG = np.random.default_rng(0)


def law_of(form: Form, *, budget: bool, coefs: tuple[float, ...] = COEFS) -> Law:
    drift = Drift(math.log(5.0), math.log(900.0), math.log(300.0), coefs[: 6 if budget else 3])
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
    plain = math.exp(5.0) * r**0.8 * length**-0.7 * (t / 250.0) ** 0.4
    assert float(law.predict(r, length, t)) == pytest.approx(plain * math.exp(q) + 0.3)
    # In the middle of the points it is the power law.
    middle = (5.0, 900.0, 300.0)
    assert isinstance(law, PowerLaw)
    straight = replace(law, drift=None).predict(*middle)
    assert float(law.predict(*middle)) == pytest.approx(float(straight))


def test_without_a_budget_term_steps_are_not_read() -> None:
    law = law_of("ceiling", budget=False)
    assert float(law.predict(4.0, 500.0, 0.0)) == float(law.predict(4.0, 500.0, 700.0))


def test_the_rising_root_is_one_of_numpys() -> None:
    for _ in range(300):
        value, slope, bend = RNG.normal(0.0, 1.0, 3) * 10.0 ** RNG.integers(-3, 2, 3)
        x = rising_root(value, slope, bend)
        roots = np.roots([bend, slope, value])
        real = roots[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots))].real
        rising = [root for root in real if slope + 2 * bend * root > 0]
        if rising:
            assert x == pytest.approx(rising[0], rel=1e-6)
        else:
            # It is above 0 all along, or never there.
            assert x == (-math.inf if bend > 0 else math.inf)


@pytest.mark.parametrize(
    ("value", "slope", "bend", "expected"),
    [
        (-2.0, 0.5, 0.0, 4.0),
        (1.0, 0.0, 0.0, -math.inf),
        (-1.0, 0.0, 0.0, math.inf),
        (-1.0, -1.0, 0.0, math.inf),
        (-1.0, 0.0, 1.0, 1.0),
        (1.0, 0.0, -1.0, -1.0),
        # Nothing is lost where the bend is all but none.
        (-1.0, 1.0, 1e-18, 1.0),
        (-1.0, 1.0, -1e-18, 1.0),
    ],
)
def test_the_rising_root_of_plain_lines_and_parabolas(
    value: float, slope: float, bend: float, expected: float
) -> None:
    assert rising_root(value, slope, bend) == pytest.approx(expected)


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
    # An exponent that falls to 0 at e^4 times the middle of the ranks.
    law = law_of(form, budget=False, coefs=(-0.1, 0.0, 0.0))
    ranks = np.geomspace(1e-3, 1e9, 2000)
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
    assert law_of("power", budget=False).param_names == (*names, *drift)
    full = (*names, "budget_exponent", *drift, *more)
    assert law_of("ceiling", budget=True).param_names == (*full, "log_sharpness")
    for form in FORMS:
        law = law_of(form, budget=True)
        np.testing.assert_allclose(law.with_params(law.params + 0.25).params, law.params + 0.25)
