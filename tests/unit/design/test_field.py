"""The field against its definition, written out with whole matrices and a refit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmlray.design import FittedForm, law_field
from pmlray.errors import DataError
from pmlray.law import Form, LawData, LawFit, PlacedPoint, Placement, average_laws
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, DOWN_EARLY, LINEAR, placed_data

CELLS = tuple(DesignPoint(r, n, 100) for r in (1, 2, 4, 8) for n in (32, 64, 128, 256))
TARGETS = (DesignPoint(8, 256, 100), DesignPoint(16, 512, 100))
BASE = 12.0


def arrays(points: tuple[DesignPoint, ...]) -> np.ndarray:
    return np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float).T


def fitted(form: Form) -> LawFit:
    r, n, t = arrays(CELLS)
    noise = 0.05 * np.random.default_rng(0).standard_normal(len(CELLS))
    delta = TRUE_LAW.predict(r, n, t) + noise
    base = np.full(len(CELLS), BASE)
    return average_laws(
        LawData(r, n, t, delta, base, base - delta, np.arange(len(CELLS))), (form,)
    ).best


def variance_of_a_run(fit: LawFit, level: np.ndarray) -> np.ndarray:
    """sigma of what is memorised, less as it saturates, and the floor of 1 % of the base loss."""
    memorised = np.maximum(level - fit.noise.offset, 0.05 * BASE)
    left = (1.0 - np.clip(level / BASE, 0.0, 1.0) ** 6) ** (7 / 6)
    return (fit.sigma * memorised * left) ** 2 + (0.01 * BASE) ** 2


def test_covariance_is_within_forms_plus_between_them() -> None:
    fits = [fitted("ceiling"), fitted("power")]
    field = law_field([FittedForm(f, w) for f, w in zip(fits, (3.0, 1.0), strict=True)], BASE)
    r, n, t = arrays(TARGETS)
    mean = [np.minimum(f.law.predict(r, n, t), BASE) for f in fits]
    middle = 0.75 * mean[0] + 0.25 * mean[1]
    expected = sum(
        w * (np.diag(f.law.jacobian(r, n, t) @ f.cov @ f.law.jacobian(r, n, t).T)
             + (m - middle) ** 2)
        for w, f, m in zip((0.75, 0.25), fits, mean, strict=True)
    )  # fmt: skip
    assert field.variance(TARGETS) == pytest.approx(expected, rel=1e-9)
    runs = [variance_of_a_run(f, f.law.predict(r, n, t)) for f in fits]
    assert field.noise(TARGETS) == pytest.approx(0.75 * runs[0] + 0.25 * runs[1])


def test_a_run_tells_less_where_its_noise_is_larger() -> None:
    fit = fitted("ceiling")
    louder = replace(fit, noise=replace(fit.noise, sigma=2.0 * fit.sigma))
    field = law_field([FittedForm(louder, 1.0)], BASE)
    mean = fit.law.predict(*arrays(CELLS))
    assert field.noise(CELLS) == pytest.approx(variance_of_a_run(louder, mean))
    plain = law_field([FittedForm(fit, 1.0)], BASE)
    middle = CELLS[int(np.argmin(np.abs(mean - BASE / 2)))]
    assert field.information([middle]) < plain.information([middle])
    # A run repeats the better the nearer it is to saturation, down to the floor.
    assert field.noise([CELLS[12]])[0] == pytest.approx((0.01 * BASE) ** 2, rel=0.01)
    assert field.noise([middle])[0] > 4 * field.noise([CELLS[12]])[0]
    once = np.linalg.inv(field.after([middle]).cov_GG)[:-1, :-1] - np.eye(fit.cov.shape[0])
    assert np.trace(once) == pytest.approx(
        float(np.sum(field.features([middle], measured=True) ** 2) / field.noise([middle])[0])
    )


def test_a_measured_point_is_what_one_form_would_learn() -> None:
    """With a single form the field is the linearised refit: information adds up."""
    fit = fitted("ceiling")
    field = law_field([FittedForm(fit, 1.0)], BASE)
    extra = (CELLS[3], CELLS[5], CELLS[3])
    jac = fit.law.jacobian(*arrays(extra))
    variance = variance_of_a_run(fit, fit.law.predict(*arrays(extra)))
    information = np.linalg.inv(fit.cov) + (jac.T / variance) @ jac
    target = fit.law.jacobian(*arrays(TARGETS))
    expected = np.diag(target @ np.linalg.inv(information) @ target.T)
    assert field.after(extra).variance(TARGETS) == pytest.approx(expected, rel=1e-6)


def test_gain_is_the_mean_variance_that_measuring_removes() -> None:
    field = law_field([FittedForm(fitted("ceiling"), 1.0), FittedForm(fitted("power"), 2.0)], BASE)
    before = field.variance(TARGETS).mean()
    removed = [before - field.after([cell]).variance(TARGETS).mean() for cell in CELLS]
    assert field.gains(CELLS, TARGETS) == pytest.approx(removed, rel=1e-6, abs=1e-12)
    assert max(removed) > 2 * min(removed) >= 0


def test_saturated_points_tell_the_power_form_nothing() -> None:
    field = law_field([FittedForm(fitted("power"), 1.0)], BASE)
    saturated = DesignPoint(512, 32, 100)
    assert field.gains([saturated], TARGETS) == pytest.approx([0.0])
    assert field.information([saturated]) == pytest.approx([0.0])


@pytest.fixture(scope="module")
def placed_fit() -> LawFit:
    """Of three placements, and of a fourth that the design may still measure."""
    places = {BLOCK: 1.0, DOWN: 1.4, ATTENTION: 0.7, DOWN_EARLY: 1.0}
    data = placed_data(places, 0)
    return average_laws(data.subset(data.placement != 3), ("ceiling",)).best


def test_variance_at_a_placement_is_that_of_the_law_and_its_worth(placed_fit: LawFit) -> None:
    """By central differences of the law in the placement's own ranks."""
    fit, point = placed_fit, DesignPoint(4, 512, 200)
    assert fit.places is not None
    joint = np.concatenate([fit.law.params, fit.places.effects_T])
    n_law = fit.law.params.size
    field = law_field([FittedForm(fit, 1.0)], BASE)
    for placement in (BLOCK, ATTENTION, DOWN_EARLY):

        def told(values: np.ndarray, placement: Placement = placement) -> float:
            assert fit.places is not None
            places = replace(fit.places, effects_T=values[n_law:])
            law = replace(fit, law=fit.law.with_params(values[:n_law]), places=places)
            return float(law.law_at(placement).predict(4, 512, 200))

        slope = [(told(joint + step) - told(joint - step)) / 2e-6
                 for step in 1e-6 * np.eye(joint.size)]  # fmt: skip
        expected = np.array(slope) @ fit.places.cov @ np.array(slope)
        found = field.variance([PlacedPoint(point, placement)])
        assert found == pytest.approx([expected], rel=1e-3)
    assert field.variance([point]) == pytest.approx(field.variance([PlacedPoint(point, BLOCK)]))


def test_a_run_tells_most_of_its_own_placement_and_then_of_its_kin(placed_fit: LawFit) -> None:
    field = law_field([FittedForm(placed_fit, 1.0)], BASE)
    cells = {p: PlacedPoint(DesignPoint(4, 512, 200), p) for p in (DOWN_EARLY, DOWN, ATTENTION)}
    gains = field.gains(list(cells.values()), [cells[DOWN_EARLY]])
    # Nothing was measured there, so a run there tells by far the most.
    assert gains[0] > 3 * gains[1:].max()
    once = field.after([cells[DOWN_EARLY]])
    removed = field.variance([cells[DOWN_EARLY]]) - once.variance([cells[DOWN_EARLY]])
    assert removed == pytest.approx([gains[0]])
    # Of a placement that little is known about its kin tell more than strangers do.
    assert gains[1] > gains[2]


def test_a_placement_that_the_law_does_not_know_is_refused(placed_fit: LawFit) -> None:
    field = law_field([FittedForm(placed_fit, 1.0)], BASE)
    with pytest.raises(DataError, match="'linear'"):
        field.variance([PlacedPoint(DesignPoint(4, 512, 200), LINEAR)])
