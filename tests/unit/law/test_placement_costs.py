"""Costs that runs measured at several placements, against ordinary least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pmlray.law import Placement, Site
from pmlray.law.placement_costs import fit_trend

PLACES = tuple(Placement(name, (Site("other", None, 1.0),)) for name in "abc")
PLACE = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_trend_is_least_squares_with_students_interval() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 1))
    y = np.array([1.0, 2.0, 4.0])[PLACE] + 0.5 * x[:, 0] + 0.1 * rng.normal(size=10)
    trend = fit_trend(PLACES, PLACE, x, y, 20_000)
    assert trend is not None and trend.kept == (0,)
    design = np.column_stack([np.eye(3)[PLACE], x])
    mean, rss, *_ = np.linalg.lstsq(design, y)
    at = np.array([0.0, 1.0, 0.0, 0.7])
    drawn = trend.at(PLACES[1], np.full((20_000, 1), 0.7))
    se = np.sqrt(rss[0] / 6 * at @ np.linalg.inv(design.T @ design) @ at)
    low, high = stats.t.interval(0.9, 6, at @ mean, se)
    assert np.median(drawn) == pytest.approx(at @ mean, abs=0.02 * se)
    assert np.quantile(drawn, [0.05, 0.95]) == pytest.approx([low, high], abs=0.06 * se)


def test_what_runs_cannot_tell_apart_has_no_slope() -> None:
    """A regressor that is the same everywhere, and one that follows from another."""
    x = np.linspace(0, 1, 10)
    y = np.array([1.0, 2.0, 4.0])[PLACE] + x
    trend = fit_trend(PLACES, PLACE, np.column_stack([np.ones(10), x, 2 * x + 1]), y, 5)
    assert trend is not None and trend.kept == (1,)
    told = trend.at(PLACES[2], np.tile([1.0, 2.0, 5.0], (5, 1)))
    assert told == pytest.approx(np.full(5, 6.0))


def test_too_few_runs_tell_no_cost() -> None:
    x, y = np.ones((10, 1)), np.arange(10.0)
    assert fit_trend((*PLACES, Placement("d", PLACES[0].sites)), PLACE, x, y, 5) is None
    assert fit_trend(PLACES, [0, 1, 2, 2, 2], x[:5], y[:5], 5) is None
