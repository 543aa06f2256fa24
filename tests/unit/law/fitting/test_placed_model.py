"""The mean function of several placements: a law at effective ranks, and its derivatives."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pmlray.law import Form, LawData
from pmlray.law.fitting.form_model import FormModel
from pmlray.law.fitting.placed_model import PlacedModel, law_model
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, placed_data

FORMS: tuple[Form, ...] = ("power", "ceiling", "exponential_ceiling", "broken")
RNG = np.random.default_rng(0)


def points(*, budget: bool) -> LawData:
    data = placed_data({BLOCK: 1.0, DOWN: 1.0, ATTENTION: 1.0}, 0)
    steps = RNG.choice([100.0, 200.0, 700.0], len(data)) if budget else data.train_steps
    at = (data.lora_rank, data.seq_len, steps, data.delta_loss, data.base_loss, data.final_loss)
    return LawData(*at, data.cluster, data.placement, data.placements)


def model_of(form: Form, data: LawData) -> PlacedModel:
    n = len(data)
    model = law_model(data, form, 12.0, np.full(n, np.inf), np.ones(n, dtype=bool), "pooled")
    assert isinstance(model, PlacedModel)
    return model


def drawn(model: FormModel, n: int) -> np.ndarray:
    """Thetas that the prior thinks likely, within the bounds."""
    theta = model.mean_P + 0.5 * model.sd_P * RNG.standard_normal((n, model.mean_P.size))
    return np.clip(theta, model.lower_P + 1e-3, model.upper_P - 1e-3)


CASES = pytest.mark.parametrize(("form", "budget"), list(product(FORMS, (False, True))))


@CASES
def test_values_are_those_of_the_law_at_effective_ranks(form: Form, budget: bool) -> None:
    data = points(budget=budget)
    model = model_of(form, data)
    theta = drawn(model, 5)
    values, _ = model.values(theta)
    assert data.placement is not None
    for row, value in zip(theta, values, strict=True):
        params = model.to_params @ row
        law = model.blank.with_params(params[: model.n_law])
        log_w = model.effects.log_worths(params[None, model.n_law :])[0][0]
        effective = data.plain_rank * np.exp(log_w[data.placement])
        told = law.predict(effective, data.seq_len, data.train_steps, data.base_loss)
        np.testing.assert_allclose(value, np.minimum(told, data.base_loss), rtol=1e-10)


@CASES
def test_the_jacobian_agrees_with_central_differences(form: Form, budget: bool) -> None:
    data = points(budget=budget)
    model = model_of(form, data)
    theta = drawn(model, 3)
    values, jac = model.values(theta)
    for p in range(theta.shape[1]):
        step = 1e-6 * np.eye(theta.shape[1])[p]
        change = (model.values(theta + step)[0] - model.values(theta - step)[0]) / 2e-6
        smooth = np.abs(values - data.base_loss) > 1e-4
        np.testing.assert_allclose(
            jac[:, :, p][smooth], change[smooth], rtol=1e-4, atol=1e-6, err_msg=str(p)
        )


def test_another_scale_moves_only_what_is_believed_of_the_effects() -> None:
    data = points(budget=False)
    model = model_of("ceiling", data)
    wide = model.at_scale(2.5)
    n_law = model.n_law
    np.testing.assert_array_equal(wide.sd_P[:n_law], model.sd_P[:n_law])
    assert wide.sd_P[n_law:] == pytest.approx(2.5 * model.sd_P[n_law:])
    theta = drawn(model, 2)
    np.testing.assert_array_equal(wide.values(theta)[0], model.values(theta)[0])
    assert np.all(wide.upper_P[n_law:] > model.upper_P[n_law:])


def test_one_placement_is_the_model_of_ranks() -> None:
    data = placed_data({DOWN: 1.0}, 0)
    n = len(data)
    model = law_model(data, "ceiling", 12.0, np.full(n, np.inf), np.ones(n, bool), "pooled")
    assert type(model) is FormModel
