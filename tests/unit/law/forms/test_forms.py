"""The forms: derivatives, monotonicity, limits, inversion and their stored form."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.law import (
    BrokenLaw,
    CeilingLaw,
    ExponentialCeilingLaw,
    PowerLaw,
    law_from_json,
)

EXPONENT = st.floats(0.1, 2.0)
POWER = st.builds(
    PowerLaw,
    coef=st.floats(1.0, 1000.0),
    rank_exponent=EXPONENT,
    len_exponent=EXPONENT,
    offset=st.floats(-2.0, 2.0),
    budget_exponent=st.floats(-0.5, 1.0),
    ref_steps=st.just(1000.0),
    fits_budget=st.booleans(),
)
CEILING = st.builds(
    CeilingLaw,
    coef=st.floats(1.0, 1000.0),
    rank_exponent=EXPONENT,
    len_exponent=EXPONENT,
    offset=st.floats(-2.0, 2.0),
    sharpness=st.floats(0.5, 32.0),
    base_loss=st.floats(1.0, 13.0),
    budget_exponent=st.floats(-0.5, 1.0),
    ref_steps=st.just(1000.0),
    fits_budget=st.booleans(),
)
EXPONENTIAL = st.builds(
    ExponentialCeilingLaw,
    coef=st.floats(1.0, 1000.0),
    rank_exponent=EXPONENT,
    len_exponent=EXPONENT,
    offset=st.floats(-2.0, 2.0),
    base_loss=st.floats(1.0, 13.0),
    budget_exponent=st.floats(-0.5, 1.0),
    ref_steps=st.just(1000.0),
    fits_budget=st.booleans(),
)
BROKEN = st.builds(
    BrokenLaw,
    coef=st.floats(1.0, 1000.0),
    rank_exponent=EXPONENT,
    len_exponent=EXPONENT,
    offset=st.floats(-2.0, 2.0),
    rank_drop=st.floats(0.0, 0.1),
    break_rank=st.floats(2.0, 64.0),
    budget_exponent=st.floats(-0.5, 1.0),
    ref_steps=st.just(1000.0),
    fits_budget=st.booleans(),
)
LAWS = st.one_of(POWER, CEILING, EXPONENTIAL, BROKEN)
CAPPED_LAWS = (CeilingLaw, ExponentialCeilingLaw)
RANK, LENGTH = st.floats(1.0, 512.0), st.floats(50.0, 32000.0)
STEPS = st.floats(100.0, 4000.0)


@given(law=LAWS, r=RANK, length=LENGTH, t=STEPS)
def test_jacobian_agrees_with_central_differences(law, r, length, t):
    if isinstance(law, CAPPED_LAWS):
        z = float(law.uncapped.predict(r, length, t))
        # d delta/dz is not differentiable at z = 0, where the ceiling begins to act.
        if abs(z) < 1e-2 * law.base_loss:
            return
    jac = law.jacobian(r, length, t)[0]
    h = 1e-5
    numeric = [
        float(law.with_params(law.params + e).predict(r, length, t))
        - float(law.with_params(law.params - e).predict(r, length, t))
        for e in h * np.eye(law.params.size)
    ]
    # Central differences: truncation ~h^2 times the third derivative (up to (n log l)^3 times the
    # value), rounding ~1e-16 value / h.
    scale = 1.0 + np.abs(jac).max()
    np.testing.assert_allclose(jac, np.array(numeric) / (2 * h), rtol=1e-4, atol=1e-5 * scale)


@given(law=LAWS, r=RANK, length=LENGTH, t=STEPS)
def test_more_rank_never_hurts_and_more_text_never_helps(law, r, length, t):
    here = float(law.predict(r, length, t))
    # Saturated values are equal up to rounding.
    slack = 1e-12 * (1 + abs(here))
    assert float(law.predict(2 * r, length, t)) >= here - slack
    assert float(law.predict(r, 2 * length, t)) <= here + slack


@given(law=LAWS, r=RANK, length=LENGTH, t=STEPS)
def test_inversion_returns_what_predicts(law, r, length, t):
    delta = float(law.predict(r, length, t))
    if isinstance(law, CAPPED_LAWS) and delta > 0.95 * law.base_loss:
        return  # Near the ceiling delta no longer tells r or l apart.
    # Where z is nearly b, z - b has lost its digits.
    z = law.uncapped if isinstance(law, CAPPED_LAWS) else law
    if abs(float(z.predict(r, length, t)) - law.offset) < 1e-3:
        return
    # Rounding of 1e-16 in z grows by |z| / |z - b| / exponent, at most 1e5 here but past a break
    # that leaves the rank next to no exponent.
    if float(law.predict(1.1 * r, length, t)) - delta > 1e-4 * abs(delta):
        assert law.invert_rank(length, t, delta) == pytest.approx(r, rel=1e-8)
    assert law.invert_len(r, t, delta) == pytest.approx(length, rel=1e-8)
    if law.fits_budget and law.budget_exponent > 0.1:
        assert law.invert_steps(r, length, delta) == pytest.approx(t, rel=1e-7)


def test_ceiling_limits_are_finite_and_right():
    law = CeilingLaw(1.0, 1.0, 1.0, 0.0, 32.0, 10.0)
    r = np.array([1e-12, 1.0, 1e3, 1e200])
    np.testing.assert_allclose(law.predict(r, 1.0, 0), [1e-12, 1.0, 10.0, 10.0], rtol=1e-12)
    negative = replace(law, offset=-5.0)
    assert float(negative.predict(1.0, 1.0, 0)) == -4.0
    assert np.all(np.isfinite(negative.jacobian([1.0, 5.0, 1e200], 1.0, 0)))


def test_ceiling_far_below_its_base_loss_is_the_power_law():
    law = CeilingLaw(238.0, 0.66, 0.56, 0.4, 6.5, 1e4)
    r, length = np.array([1, 8, 64]), np.array([1000, 4000, 8000])
    # (z / L0)^n is below 1e-13 here.
    expected = law.uncapped.predict(r, length, 0)
    np.testing.assert_allclose(law.predict(r, length, 0), expected, rtol=1e-12)


def test_prediction_uses_the_base_loss_of_each_point():
    law = CeilingLaw(1e6, 1.0, 0.5, 0.0, 8.0, 12.0)
    np.testing.assert_allclose(
        law.predict(512, 1000, 0, base_loss=[3.0, 12.0]), [3.0, 12.0], rtol=1e-9
    )


def test_what_cannot_be_reached_inverts_to_infinity_or_zero():
    law = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
    assert law.invert_rank(1000, 0, 12.4) == math.inf
    assert law.invert_len(8, 0, 13.0) == 0.0
    assert law.invert_rank(1000, 0, 0.5) == 0.0
    assert law.invert_len(8, 0, 0.5) == math.inf
    flat = PowerLaw(5.0, 0.0, 0.0, 0.0)
    assert (flat.invert_rank(1000, 0, 4.0), flat.invert_rank(1000, 0, 6.0)) == (0.0, math.inf)
    assert (flat.invert_len(1, 0, 4.0), flat.invert_len(1, 0, 6.0)) == (math.inf, 0.0)


def test_a_law_without_budget_term_does_not_read_the_steps():
    law = PowerLaw(238.0, 0.66, 0.56, -0.38)
    assert float(law.predict(8, 4000, 0)) == float(law.predict(8, 4000, 2000))


def test_predict_broadcasts():
    law = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
    grid = law.predict(np.array([1, 2, 4])[:, None], np.array([1000, 2000]), 0)
    assert grid.shape == (3, 2)
    assert grid[2, 1] == pytest.approx(float(law.predict(4, 2000, 0)))


@given(law=LAWS)
def test_json_round_trip_is_exact(law):
    assert law_from_json(json.loads(json.dumps(law.to_json()))) == law


@given(law=LAWS)
def test_params_round_trip(law):
    assert len(law.param_names) == law.params.size
    # coef and sharpness pass through a logarithm.
    np.testing.assert_allclose(law.with_params(law.params).params, law.params, atol=1e-12)
    assert law.with_params(law.params).base_loss == law.base_loss if law.form == "ceiling" else True


@pytest.mark.parametrize("stored", [{"form": "cubic"}, {"coef": 1.0}, {"form": "power", "c": 1.0}])
def test_a_stored_law_that_is_not_one_is_refused(stored):
    with pytest.raises(DataError, match="not a stored law"):
        law_from_json(stored)
