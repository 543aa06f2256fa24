"""The field against its definition, written out with whole matrices and a refit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmlray.design import Belief, law_field
from pmlray.law import Form, LawData, LawFit, average_laws
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

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


def test_covariance_is_within_forms_plus_between_them() -> None:
    fits = [fitted("ceiling"), fitted("power")]
    field = law_field([Belief(f, w) for f, w in zip(fits, (3.0, 1.0), strict=True)], BASE)
    r, n, t = arrays(TARGETS)
    mean = [np.minimum(f.law.predict(r, n, t), BASE) for f in fits]
    middle = 0.75 * mean[0] + 0.25 * mean[1]
    expected = sum(
        w * (np.diag(f.law.jacobian(r, n, t) @ f.cov @ f.law.jacobian(r, n, t).T)
             + (m - middle) ** 2)
        for w, f, m in zip((0.75, 0.25), fits, mean, strict=True)
    )  # fmt: skip
    assert field.variance(TARGETS) == pytest.approx(expected, rel=1e-9)
    noise = 0.75 * fits[0].sigma ** 2 + 0.25 * fits[1].sigma ** 2
    assert field.noise(TARGETS) == pytest.approx([noise, noise])


def test_a_run_tells_less_where_its_noise_is_larger() -> None:
    fit = fitted("ceiling")
    growing = replace(fit, noise=replace(fit.noise, power=1.0))
    field = law_field([Belief(growing, 1.0)], BASE)
    mean = fit.law.predict(*arrays(CELLS))
    assert field.noise(CELLS) == pytest.approx((fit.sigma * mean / fit.noise.ref) ** 2)
    largest = CELLS[int(np.argmax(mean))]
    plain = law_field([Belief(fit, 1.0)], BASE)
    assert field.information([largest]) < plain.information([largest])
    once = np.linalg.inv(field.after([largest]).cov_GG)[:-1, :-1] - np.eye(fit.cov.shape[0])
    assert np.trace(once) == pytest.approx(
        float(np.sum(field.features([largest], measured=True) ** 2) / field.noise([largest])[0])
    )


def test_a_measured_point_is_what_one_form_would_learn() -> None:
    """With a single form the field is the linearised refit: information adds up."""
    fit = fitted("ceiling")
    field = law_field([Belief(fit, 1.0)], BASE)
    extra = (CELLS[3], CELLS[5], CELLS[3])
    jac = fit.law.jacobian(*arrays(extra))
    information = np.linalg.inv(fit.cov) + jac.T @ jac / fit.sigma**2
    target = fit.law.jacobian(*arrays(TARGETS))
    expected = np.diag(target @ np.linalg.inv(information) @ target.T)
    assert field.after(extra).variance(TARGETS) == pytest.approx(expected, rel=1e-6)


def test_gain_is_the_mean_variance_that_measuring_removes() -> None:
    field = law_field([Belief(fitted("ceiling"), 1.0), Belief(fitted("power"), 2.0)], BASE)
    before = field.variance(TARGETS).mean()
    removed = [before - field.after([cell]).variance(TARGETS).mean() for cell in CELLS]
    assert field.gains(CELLS, TARGETS) == pytest.approx(removed, rel=1e-6, abs=1e-12)
    assert max(removed) > 2 * min(removed) >= 0


def test_saturated_points_tell_the_power_form_nothing() -> None:
    field = law_field([Belief(fitted("power"), 1.0)], BASE)
    saturated = DesignPoint(512, 32, 100)
    assert field.gains([saturated], TARGETS) == pytest.approx([0.0])
    assert field.information([saturated]) == pytest.approx([0.0])
