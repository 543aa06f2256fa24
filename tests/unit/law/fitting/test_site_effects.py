"""What parameters are worth by kind, depth and placement, against sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmlray.law.fitting.site_effects import (
    SITE_NAMES,
    FittedPlaces,
    SiteEffects,
    Worth,
    site_effects,
)
from pmlray.law.placements import Placement, Site
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, DOWN_EARLY, LINEAR, placed

PLACES = (BLOCK, DOWN, ATTENTION, placed("both", ("attention", "mlp_out"), (3, 27)))
KIND = {"attention": 0, "mlp_in": 1, "mlp_out": 2, "mlp_block": 3}


def by_hand(placement: Placement, effects: np.ndarray, own: float) -> float:
    """log of the sum of sites' worths by their shares, times those of spread depths and its own."""
    total = sum(site.params_per_rank for site in placement.sites)
    worth, depths = 0.0, []
    for site in placement.sites:
        along = 2 * (site.depth or 0.0) - 1
        log_w = effects[KIND[site.kind]] + effects[4] * along + effects[5] * (along**2 - 1 / 3)
        worth += site.params_per_rank / total * math.exp(log_w)
        depths.append(site.depth)
    return math.log(worth) + effects[6] * float(np.std(depths)) * math.sqrt(12) + own


def test_worths_are_sums_over_sites() -> None:
    effects = site_effects(PLACES, "pooled")
    drawn = np.random.default_rng(0).normal(0.0, 0.4, (3, effects.sd_T.size))
    found, _ = effects.log_worths(drawn)
    for row, told in zip(drawn, found, strict=True):
        logs = [by_hand(p, row, row[7 + k]) for k, p in enumerate(PLACES)]
        assert told == pytest.approx(np.array(logs) - logs[0], abs=1e-12)
        # A placement without points: the same sum, without a deviation of its own.
        unseen = effects.log_worth_of(LINEAR, row[None], drawn=False)[0]
        assert unseen == pytest.approx(by_hand(LINEAR, row, 0.0) - logs[0])


@pytest.mark.parametrize("worth", ["parameters", "one_factor", "sites", "pooled"])
def test_slopes_are_those_of_central_differences(worth: Worth) -> None:
    effects = site_effects(PLACES, worth)
    n = effects.sd_T.size
    assert n == {"parameters": 0, "one_factor": 4, "sites": 7, "pooled": 11}[worth]
    at = np.random.default_rng(1).normal(0.0, 0.4, (2, n))
    _, slope = effects.log_worths(at)
    for t in range(n):
        step = 1e-6 * np.eye(n)[t]
        ends = [effects.log_worths(at + sign * step)[0] for sign in (1, -1)]
        assert slope[:, :, t] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_unseen_placements_draw_their_own_deviation_always_the_same() -> None:
    effects = site_effects(PLACES, "pooled", scale=2.0)
    nothing = np.zeros((4000, effects.sd_T.size))
    drawn = effects.log_worth_of(DOWN_EARLY, nothing, drawn=True)
    assert drawn.std() == pytest.approx(2.0 * 0.25, rel=0.05)
    np.testing.assert_array_equal(drawn, effects.log_worth_of(DOWN_EARLY, nothing, drawn=True))
    other = effects.log_worth_of(LINEAR, nothing, drawn=True)
    assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.06
    # One with points has no more doubt than its effects have.
    assert np.all(effects.log_worth_of(DOWN, nothing, drawn=True) == 0.0)


def test_sites_of_no_known_kind_or_depth_are_average() -> None:
    unknown = Placement("unknown", (Site("other", None, 100.0),))
    effects = site_effects((unknown, BLOCK), "sites")
    at = np.random.default_rng(2).normal(0.0, 0.4, (1, len(SITE_NAMES) + 1))
    assert effects.log_worths(at)[0][0, 1] == pytest.approx(by_hand(BLOCK, at[0], 0.0))


def test_ranks_count_by_parameters_and_worth() -> None:
    effects: SiteEffects = site_effects((BLOCK, DOWN), "one_factor")
    places = FittedPlaces(effects, np.array([0.0, math.log(1.5)]), np.eye(2))
    ranks = places.law_ranks(np.array([6.0, 6.0]), np.array([0, 1]))
    assert ranks == pytest.approx([6.0, 6.0 / 3 * 1.5])
    assert places.log_factor(DOWN) == pytest.approx(math.log(1.5 / 3))
