"""Averaging: weights follow held-out errors, predictions and inversions follow the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmlray.errors import FitError
from pmlray.law import AveragedLaw, CeilingLaw, LawData, PowerLaw, average_laws, fit_law

RANKS, LENGTHS = (1, 2, 4, 8, 16), (50, 100, 200, 400, 800)


def points(law: PowerLaw | CeilingLaw, base: float, noise: float = 0.05) -> LawData:
    r, n = (x.ravel().astype(float) for x in np.meshgrid(RANKS, LENGTHS))
    t = np.full(r.size, 100.0)
    delta = law.predict(r, n, t) + noise * np.random.default_rng(0).standard_normal(r.size)
    base_N = np.full(r.size, base)
    return LawData(r, n, t, delta, base_N, base_N - delta, np.arange(r.size))


def test_the_form_that_extrapolates_gets_the_weight() -> None:
    # Much of the grid is near its ceiling: the power form bends the wrong way beyond it.
    capped = points(CeilingLaw(60.0, 0.8, 0.7, 0.3, 3.0, 6.0), 6.0)
    average = average_laws(capped, ("power", "ceiling"))
    assert average.best.law.form == "ceiling" and average.weights[0] > 0.95
    assert sum(average.weights) == pytest.approx(1.0)


def test_forms_that_predict_alike_share_the_weight() -> None:
    # Far from a ceiling of 1e3 nats the two forms are the same law.
    free = points(PowerLaw(20.0, 0.6, 0.5, 0.1), 1e3)
    average = average_laws(free, ("power", "ceiling"))
    assert min(average.weights) > 0.2


def average_of_two() -> AveragedLaw:
    data = points(CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 12.0), 12.0)
    return AveragedLaw((fit_law(data, "ceiling"), fit_law(data, "power")), (0.7, 0.3))


def test_predicts_the_weighted_mean_and_inverts_it() -> None:
    average = average_of_two()
    ceiling, power = (fit.law for fit in average.fits)
    expected = 0.7 * ceiling.predict(3.0, 300.0, 100.0) + 0.3 * power.predict(3.0, 300.0, 100.0)
    delta = float(average.predict(3.0, 300.0, 100.0))
    assert delta == pytest.approx(float(expected))
    assert average.invert_rank(300.0, 100.0, delta) == pytest.approx(3.0, rel=1e-9)
    assert average.invert_len(3.0, 100.0, delta) == pytest.approx(300.0, rel=1e-9)
    assert average.invert_rank(300.0, 100.0, -100.0) == 0.0
    assert average.invert_len(3.0, 100.0, -100.0) == math.inf
    ceiling_alone = AveragedLaw((average.fits[0],), (1.0,))
    assert ceiling_alone.invert_rank(300.0, 100.0, 13.0) == math.inf
    assert ceiling_alone.invert_len(3.0, 100.0, 13.0) == 0.0


def test_the_interval_spans_the_forms() -> None:
    data = points(CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 12.0), 12.0)
    average = average_of_two()
    far = (64.0, 200.0, 100.0)
    ceiling, power = (float(fit.law.predict(*far)) for fit in average.fits)
    assert abs(ceiling - power) > 1.0
    low, high = average.sample(data, 200, np.random.default_rng(0)).interval(*far)
    assert low <= min(ceiling, power) + 0.2 and high >= max(ceiling, power) - 0.2
    alone = AveragedLaw(average.fits, (1.0, 0.0)).sample(data, 200, np.random.default_rng(0))
    low_alone, high_alone = alone.interval(*far)
    assert high_alone - low_alone < 0.5 * (high - low)


def test_no_form_is_an_error_that_names_each() -> None:
    data = points(CeilingLaw(60.0, 0.8, 0.7, 0.3, 5.0, 12.0), 12.0)
    nothing = data.subset(np.zeros(len(data), dtype=bool))
    with pytest.raises(FitError, match=r"power: .*; ceiling: "):
        average_laws(nothing, ("power", "ceiling"))


def test_held_out_fits_may_lack_a_budget_that_the_whole_has() -> None:
    """Only the largest rank has two budgets: without it there is no budget left to fit."""
    law = PowerLaw(20.0, 0.6, 0.5, 0.1, 0.3, 100.0, True)
    r, n = (x.ravel().astype(float) for x in np.meshgrid(RANKS, LENGTHS))
    r, n = np.append(r, [16.0] * 5), np.append(n, LENGTHS)
    t = np.append(np.full(25, 100.0), np.full(5, 400.0))
    delta = law.predict(r, n, t) + 0.02 * np.random.default_rng(0).standard_normal(r.size)
    base = np.full(r.size, 1e3)
    average = average_laws(
        LawData(r, n, t, delta, base, base - delta, np.arange(r.size)), ("power", "ceiling")
    )
    assert sum(average.weights) == pytest.approx(1.0)
    assert average.fits[0].law.budget_exponent == pytest.approx(0.3, abs=0.05)
