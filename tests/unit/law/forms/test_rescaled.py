"""A law in ranks of another placement."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmlray.law import BrokenLaw, CeilingLaw, Law, PowerLaw
from pmlray.law.forms.ceiling import ExponentialCeilingLaw
from pmlray.law.forms.drift import Drift
from pmlray.law.forms.rescaled import in_ranks_of, rank_slope

DRIFT = Drift(1.2, 6.0, 0.0, (-1.0, -1.5), (1.0, 1.5), (0.05, -0.04, 0.02, 0.1, -0.1, 0.2, 0.1))
LAWS: tuple[Law, ...] = (
    PowerLaw(20.0, 0.6, 0.5, 0.3, drift=DRIFT),
    CeilingLaw(40.0, 0.7, 0.6, 0.4, 6.0, 12.0, drift=DRIFT),
    ExponentialCeilingLaw(40.0, 0.7, 0.6, 0.4, 12.0),
    BrokenLaw(20.0, 0.6, 0.5, 0.3, 0.4, 5.0, drift=DRIFT),
)
RANKS = np.array([0.5, 1.0, 3.0, 4.7, 30.0, 200.0])
OF_FORMS = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form)


@OF_FORMS
def test_a_rank_there_is_worth_a_number_of_ranks_here(law: Law) -> None:
    there = in_ranks_of(law, math.log(3.5))
    for length in (50.0, 400.0, 9000.0):
        told = there.predict(RANKS, length, 0.0)
        assert told == pytest.approx(law.predict(3.5 * RANKS, length, 0.0), rel=1e-12)
    delta = float(law.predict(7.0, 400.0, 0.0))
    assert there.invert_rank(400.0, 0.0, delta) == pytest.approx(2.0, rel=1e-6)


@OF_FORMS
def test_the_slope_is_that_of_the_amplitude_along_the_rank(law: Law) -> None:
    """By central differences of the law, whose other factors do not depend on the rank."""
    length = np.full(RANKS.size, 400.0)
    by_log_a = law.jacobian(RANKS, length, 0.0)[:, 0]
    ends = [law.predict(RANKS * math.exp(step), length, 0.0) for step in (1e-6, -1e-6)]
    told = rank_slope(law, RANKS, length, np.zeros(RANKS.size))
    assert by_log_a * told == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)
