"""A form's mean function, its derivatives, and what is believed before any point."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pmlray.law import Form, LawData
from pmlray.law.fitting.form_model import FormModel, build_model

FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")
RNG = np.random.default_rng(0)
N = 14
EVERY = np.ones(N, dtype=bool)


def points(*, budget: bool) -> LawData:
    r = 2.0 ** RNG.integers(0, 6, N)
    length = 50.0 * 2.0 ** RNG.integers(0, 6, N)
    t = RNG.choice([100.0, 200.0, 700.0], N) if budget else np.full(N, 150.0)
    base = np.where(np.arange(N) % 2, 12.0, 12.4)
    delta = RNG.uniform(1.0, 11.0, N)
    return LawData(r, length, t, delta, base, base - delta, np.arange(N) % 5)


def model_of(form: Form, *, budget: bool) -> tuple[FormModel, LawData]:
    data = points(budget=budget)
    return build_model(data, form, 12.2, np.full(N, np.inf), EVERY), data


def drawn(model: FormModel, n: int) -> np.ndarray:
    """Thetas that the prior thinks likely, within the bounds."""
    theta = model.mean_P + 0.5 * model.sd_P * RNG.standard_normal((n, model.mean_P.size))
    return np.clip(theta, model.lower_P + 1e-3, model.upper_P - 1e-3)


CASES = pytest.mark.parametrize(("form", "budget"), list(product(FORMS, (False, True))))


@CASES
def test_values_are_what_the_law_predicts(form: Form, budget: bool) -> None:
    model, data = model_of(form, budget=budget)
    theta = drawn(model, 6)
    values, _ = model.values(theta)
    for row, value in zip(theta, values, strict=True):
        law = model.blank.with_params(model.to_params @ row)
        assert law.fits_budget == budget and law.form == form
        told = law.predict(data.lora_rank, data.seq_len, data.train_steps, data.base_loss)
        # A form without a ceiling ends at the base loss all the same.
        np.testing.assert_allclose(value, np.minimum(told, data.base_loss), rtol=1e-10)


@CASES
def test_the_jacobian_agrees_with_central_differences(form: Form, budget: bool) -> None:
    model, data = model_of(form, budget=budget)
    theta = drawn(model, 4)
    values, jac = model.values(theta)
    for p in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[p]
        change = (model.values(theta + step)[0] - model.values(theta - step)[0]) / 2e-6
        # Where an uncapped form has come to the base loss it has a kink.
        smooth = np.abs(values - data.base_loss) > 1e-4
        np.testing.assert_allclose(
            jac[:, :, p][smooth], change[smooth], rtol=1e-4, atol=1e-6, err_msg=str(p)
        )


def test_what_is_beyond_a_lower_bound_is_no_miss() -> None:
    data = points(budget=False)
    limit = np.where(np.arange(N) < 5, 3.0, np.inf)
    model = build_model(data, "ceiling", 12.2, limit, EVERY)
    plain = build_model(data, "ceiling", 12.2, np.full(N, np.inf), EVERY)
    theta = drawn(model, 5)
    values, jac = model.values(theta)
    expected, slopes = plain.values(theta)
    np.testing.assert_array_equal(values, np.minimum(expected, limit))
    beyond = expected > limit
    assert beyond.any() and np.all(jac[beyond] == 0.0)
    np.testing.assert_array_equal(jac[~beyond], slopes[~beyond])


@pytest.mark.parametrize("budget", [False, True])
def test_no_exponent_is_believed_below_0_at_any_corner_of_the_points(budget: bool) -> None:
    """The slopes against differences of the log amplitude of the power form."""
    model, data = model_of("power", budget=budget)
    axes = [data.lora_rank, data.seq_len] + [data.train_steps] * budget
    [theta] = drawn(model, 1)
    law = model.blank.with_params(model.to_params @ theta)
    expected = []
    for corner in product(*[(axis.min(), axis.max()) for axis in axes]):
        for axis, sign in zip(range(len(axes)), (1.0, -1.0, 1.0), strict=False):
            # Towards the points: beyond them another exponent holds.
            inwards = 1e-5 if corner[axis] == axes[axis].min() else -1e-5
            ends = []
            for step in (inwards, 0.0):
                at = [*corner, 150.0][:3]
                at[axis] *= np.exp(step)
                ends.append(float(np.log(law.predict(*at) - law.offset)))
            expected.append(sign * (ends[0] - ends[1]) / inwards)
    np.testing.assert_allclose(sorted(model.slopes_MP @ theta), sorted(expected), atol=1e-4)


def test_before_any_point_the_law_is_believed_as_told() -> None:
    model, data = model_of("ceiling", budget=True)
    at = dict(zip(model.blank.param_names, zip(model.mean_P, model.sd_P, strict=True), strict=True))
    assert at["rank_exponent"] == (0.5, 0.4) and at["len_exponent"] == (0.9, 0.5)
    assert at["budget_exponent"] == (0.7, 0.6)
    assert at["offset"] == pytest.approx((0.2 * 12.2, 0.15 * 12.2))
    assert {at[name] for name in at if name.endswith("drift")} == {(0.0, 0.1)}
    assert {at[name] for name in at if name.endswith(("above", "below"))} == {(0.0, 0.2)}
    # The amplitude is believed in the middle of the points, not at rank 1 and one token.
    assert at["log_coef"] == (pytest.approx(np.log(data.delta_loss.mean())), 1.5)
    middle = [np.exp(np.log(x).mean()) for x in (data.lora_rank, data.seq_len, data.train_steps)]
    law = model.blank.with_params(model.to_params @ model.mean_P)
    z = float(law.uncapped.predict(*middle))  # type: ignore[attr-defined]
    assert z == pytest.approx(data.delta_loss.mean() + 0.2 * 12.2)


def test_a_base_loss_that_some_points_lack_caps_the_others() -> None:
    data = points(budget=False)
    base = np.where(np.arange(N) < 3, np.nan, data.base_loss)
    partly = LawData(*(data.lora_rank, data.seq_len, data.train_steps, data.delta_loss), base,
                     data.final_loss, data.cluster)  # fmt: skip
    model = build_model(partly, "power", 12.2, np.full(N, np.inf), EVERY)
    huge = model.mean_P + np.eye(model.mean_P.size)[0] * 10.0
    values, _ = model.values(huge[None])
    assert np.all(values[0, :3] > 100.0)
    np.testing.assert_array_equal(values[0, 3:], data.base_loss[3:])


def test_the_drift_ends_where_the_points_that_say_something_do() -> None:
    data = points(budget=False)
    inside = data.lora_rank < data.lora_rank.max()
    model = build_model(data, "power", 12.2, np.full(N, np.inf), inside)
    drift = model.blank.drift
    assert drift is not None
    known = data.subset(inside)
    at = (np.log(known.lora_rank) - drift.log_rank, drift.log_len - np.log(known.seq_len))
    assert drift.low == pytest.approx([axis.min() for axis in at])
    assert drift.high == pytest.approx([axis.max() for axis in at])
    # The middle is that of all points.
    assert drift.log_rank == pytest.approx(np.log(data.lora_rank).mean())
