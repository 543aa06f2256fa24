"""Errors at points that a fit did not see, against refits by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from pmlray.law import CeilingLaw, FitOptions, LawData, PowerLaw, average_laws, fit_law
from pmlray.law.validation.unseen import extrapolation_errors, heldout_errors, unseen_error
from tests.unit.law.believed import Believed
from tests.unit.law.conftest import PointsOf

POWER = PowerLaw(238.0, 0.66, 0.56, 0.4)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)


@pytest.fixture(scope="module")
def noisy(points_of: PointsOf) -> LawData:
    rng = np.random.default_rng(3)
    cluster = rng.permutation(np.arange(20) % 4)
    noise = 0.2 * rng.standard_normal(4)[cluster] + 0.05 * rng.standard_normal(20)
    return points_of(POWER, noise=noise, cluster=cluster)


@pytest.mark.parametrize("by", ["cell", "text"])
def test_held_out_errors_are_those_of_refits_without_each_group(noisy: LawData, by: str) -> None:
    """The likeliest law of the others, found anew by another optimiser at the same noise."""
    average = average_laws(noisy, ("power",))
    groups = noisy.cells() if by == "cell" else noisy.cluster
    errors = heldout_errors(average, noisy, groups)
    found = average.posteriors[0]
    start = found.theta_GP[int(np.argmax(found.weight_G))]
    for group in np.unique(groups)[::3]:
        left = groups == group
        offset = found.noise.offset
        believed = Believed(noisy, offset, ~left, fitted=found.unit_N + offset)

        def minus(theta: np.ndarray, believed: Believed = believed) -> float:
            return -max(float(believed.log_density(theta[None], average.best.sigma)[0]), -1e9)

        theta = minimize(minus, start, method="BFGS", options={"gtol": 1e-7}).x
        told = believed.at(theta[None], believed.u, believed.v)[0]
        expected = np.abs(told - noisy.delta_loss) / noisy.delta_loss
        np.testing.assert_allclose(errors[left], expected[left], rtol=1e-3, atol=1e-5)


def test_of_very_many_groups_some_are_left_out(
    noisy: LawData, monkeypatch: pytest.MonkeyPatch
) -> None:
    average = average_laws(noisy, ("power",))
    each = heldout_errors(average, noisy, noisy.cells())
    monkeypatch.setattr("pmlray.law.validation.unseen.MOST_LEFT_OUT", 3)
    some = heldout_errors(average, noisy, noisy.cells())
    known = ~np.isnan(some)
    assert np.unique(noisy.cells()[known]).size == 3 < np.unique(noisy.cells()).size
    np.testing.assert_allclose(some[known], each[known])
    np.testing.assert_array_equal(some, heldout_errors(average, noisy, noisy.cells()))
    assert unseen_error(some, noisy).n_cells == 3


def test_points_not_seen_are_predicted_worse_than_those_that_were(noisy: LawData) -> None:
    average = average_laws(noisy, ("power",))
    told = average.predict(noisy.lora_rank, noisy.seq_len, noisy.train_steps)
    seen = np.mean(np.abs(told / noisy.delta_loss - 1.0))
    for groups in (noisy.cells(), noisy.cluster):
        assert heldout_errors(average, noisy, groups).mean() > seen


def test_replicates_of_a_cell_are_left_out_together(noisy: LawData) -> None:
    twice = noisy.subset(np.tile(np.arange(20), 2))
    errors = heldout_errors(average_laws(twice, ("power",)), twice, twice.cells())
    # Were one of the two left, the other's error would all but vanish.
    once = heldout_errors(average_laws(noisy, ("power",)), noisy, noisy.cells())
    assert errors.mean() > 0.7 * once.mean()
    np.testing.assert_allclose(errors[:20], errors[20:])


def test_saturated_points_and_too_few_others_have_no_error(points_of: PointsOf) -> None:
    data = points_of(CEILING, base_loss=12.4)
    informative = data.delta_loss <= 0.95 * 12.4
    errors = heldout_errors(average_laws(data, ("ceiling",)), data, data.cells())
    np.testing.assert_array_equal(np.isnan(errors), ~informative)
    # Text 0 holds all but three of the points that are not saturated.
    split = np.zeros(20, dtype=np.int64)
    split[np.flatnonzero(informative)[:3]] = 1
    errors = heldout_errors(average_laws(data, ("ceiling",)), data, split)
    np.testing.assert_array_equal(np.isnan(errors), (split == 0) | ~informative)


@pytest.mark.parametrize("form", ["power", "ceiling"])
def test_extrapolation_is_to_the_largest_length_and_rank(points_of: PointsOf, form: str) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20)
    data = points_of(CEILING, base_loss=12.4, noise=noise)
    errors = extrapolation_errors(data, (form,), FitOptions())  # type: ignore[arg-type]
    expected = np.full(20, np.nan)
    for axis in (data.seq_len, data.lora_rank):
        far = (axis == axis.max()) & (data.delta_loss <= 0.95 * 12.4)
        law = average_laws(data.subset(axis < axis.max()), (form,))  # type: ignore[arg-type]
        told = law.predict(data.lora_rank[far], data.seq_len[far], 0)
        # The corner is at both ends: the larger error counts.
        expected[far] = np.fmax(expected[far], np.abs(told / data.delta_loss[far] - 1))
    assert 0 < np.isfinite(expected).sum() < 20
    np.testing.assert_allclose(errors, expected)


def test_too_few_points_give_no_error_rather_than_a_wrong_one(points_of: PointsOf) -> None:
    few = points_of(POWER).subset(np.array([0, 7, 18]))
    summary = fit_law(few)
    assert summary.heldout is None is summary.extrapolation and summary.heldout_mape is None
    lengths = (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
    one_rank = fit_law(points_of(POWER, (4.0,), lengths))
    assert one_rank.extrapolation is None and one_rank.heldout is not None
    # Every point of its own text says nothing of new texts that cells do not.
    assert one_rank.new_sequence is None


def test_the_mean_error_is_over_cells_with_the_interval_of_a_mean(points_of: PointsOf) -> None:
    data = points_of(POWER).subset(np.array([0, 0, 0, 5, 5, 9, 12]))
    errors = np.array([0.1, 0.2, 0.3, 0.05, np.nan, 0.4, np.nan])
    found = unseen_error(errors, data)
    assert found is not None and found.n_cells == 3
    means = np.array([0.2, 0.05, 0.4])
    assert found.error == pytest.approx(means.mean())
    half = 1.645 * means.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx(
        (max(means.mean() - half, 0), means.mean() + half)
    )
    assert unseen_error(np.where(np.arange(7) < 5, errors, np.nan), data) is None
    assert unseen_error(np.full(7, np.nan), data) is None


def test_the_form_that_is_true_extrapolates_best(points_of: PointsOf) -> None:
    data = points_of(CEILING, base_loss=12.4)
    true, other = (fit_law(data, form) for form in ("ceiling", "power"))  # type: ignore[arg-type]
    for name in ("heldout_mape", "extrapolation_mape"):
        right, wrong = getattr(true, name), getattr(other, name)
        assert right is not None and right < 0.012 < 0.03 < wrong


def test_a_measured_zero_has_no_share(points_of: PointsOf) -> None:
    data = points_of(POWER)
    zero = replace(data, delta_loss=np.where(np.arange(20) == 7, 0.0, data.delta_loss))
    errors = heldout_errors(average_laws(zero, ("power",)), zero, zero.cells())
    np.testing.assert_array_equal(np.isnan(errors), np.arange(20) == 7)
