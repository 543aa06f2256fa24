"""When a law counts as known: at its targets, from points that say something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmlray.law import (
    CeilingLaw,
    FitStatus,
    LawFit,
    PlacedPoint,
    PowerLaw,
    average_laws,
    fit_law,
)
from pmlray.law.validation.judgement import informative_points, is_far, judge, shortages
from pmlray.types import DesignPoint
from tests.unit.law.conftest import PointsOf
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, placed_data

POWER = PowerLaw(238.0, 0.66, 0.56, -0.38)
CEILING = CeilingLaw(714.0, 0.88, 0.76, 0.6, 6.5, 12.4)
TARGET = DesignPoint(8, 2000, 0)


@pytest.fixture
def fit(points_of: PointsOf) -> LawFit:
    return average_laws(points_of(POWER, noise=0.01), ("power",)).best


def test_a_point_is_informative_until_it_has_learnt_95_percent(points_of: PointsOf) -> None:
    data = points_of(CEILING, base_loss=12.4)
    share = np.linspace(0.5, 1.0, 20)
    data = replace(data, delta_loss=12.4 * share)
    np.testing.assert_array_equal(informative_points(data), share <= 0.95)
    # Where the base loss is not known, any point may be.
    assert informative_points(replace(data, base_loss=np.full(20, np.nan))).all()


def test_one_cell_more_is_needed_than_the_law_has_parameters(
    points_of: PointsOf, fit: LawFit
) -> None:
    data = points_of(POWER)
    # C, alpha, beta and b: the drift is known from before.
    apart = np.array([0, 5, 10, 15, 3])
    assert shortages(data.subset(apart), fit) == []
    [reason] = shortages(data.subset(apart[:4]), fit)
    assert reason.startswith("4 distinct (r, l, t) that are not saturated, and 5 are needed")
    # The same cells again are no more of them.
    [again] = shortages(data.subset(np.tile(apart[:4], 5)), fit)
    assert again == reason


def test_a_ceiling_has_one_parameter_more(points_of: PointsOf) -> None:
    data = points_of(CEILING, base_loss=12.4, noise=-0.01)
    capped = average_laws(data, ("ceiling",)).best
    informative = np.flatnonzero(informative_points(data))
    [reason] = shortages(data.subset(informative[[0, 3, 6, 9, 12]]), capped)
    assert "5 distinct (r, l, t) that are not saturated, and 6 are needed" in reason
    # Saturated points do not help.
    saturated = np.flatnonzero(~informative_points(data))
    assert saturated.size >= 2
    mixed = np.concatenate([informative[[0, 3, 6, 9, 12]], saturated])
    assert shortages(data.subset(mixed), capped) == [reason]


def test_one_rank_or_one_length_leaves_an_exponent_open(points_of: PointsOf, fit: LawFit) -> None:
    lengths = (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
    [of_rank] = shortages(points_of(POWER, (4.0,), lengths), fit)
    assert "fewer than two ranks" in of_rank and "rank_exponent" in of_rank
    [of_length] = shortages(points_of(POWER, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (4000.0,)), fit)
    assert "fewer than two lengths" in of_length and "len_exponent" in of_length


def test_points_that_are_all_alike_may_all_be_saturated(points_of: PointsOf, fit: LawFit) -> None:
    alike = replace(points_of(POWER), delta_loss=np.linspace(11.5, 12.0, 20))
    [reason] = shortages(alike, fit)
    assert "all may be saturated" in reason and "--base-loss" in reason
    known = replace(alike, base_loss=np.full(20, 24.0))
    assert shortages(known, fit) == []
    assert shortages(replace(alike, delta_loss=np.linspace(11.0, 12.0, 20)), fit) == []


def test_a_target_that_is_known_to_a_third_is_known(points_of: PointsOf, fit: LawFit) -> None:
    data = points_of(POWER)
    known = judge(data, fit, [(TARGET, 0.33), (TARGET, 0.01)])
    assert known.status is FitStatus.CONVERGED and known.enough and known.message == ""
    wide = judge(data, fit, [(TARGET, 0.01), (DesignPoint(1, 32000, 0), 0.4)])
    assert wide.status is FitStatus.UNDERDETERMINED and wide.enough
    assert "at rank 1 and 32000 tokens the law is only known to 40 %" in wide.message
    assert "rank 8" not in wide.message and "measure next:" in wide.message


def test_a_parameter_that_is_open_and_moves_no_target_changes_no_status(
    points_of: PointsOf, fit: LawFit
) -> None:
    found = judge(points_of(POWER), replace(fit, unidentified=("offset",)), [(TARGET, 0.1)])
    assert found.status is FitStatus.CONVERGED
    assert found.message == "the points leave offset open, which moves no target"


def test_too_few_points_are_never_enough_however_narrow_the_interval(
    points_of: PointsOf, fit: LawFit
) -> None:
    few = judge(points_of(POWER).subset(np.array([0, 7, 18])), fit, [(TARGET, 0.001)])
    assert few.status is FitStatus.UNDERDETERMINED and not few.enough


def test_a_law_above_all_that_was_measured_is_open_without_a_base_loss(
    points_of: PointsOf, fit: LawFit
) -> None:
    found = judge(points_of(POWER), fit, [(TARGET, 0.1)], [TARGET])
    assert found.status is FitStatus.UNDERDETERMINED and found.enough
    assert "at rank 8 and 2000 tokens the law goes above all that was measured" in found.message
    # What is asked of it is held there, and said to be.
    above = DesignPoint(512, 1000, 0)
    summary = fit_law(points_of(POWER, noise=0.01), targets=[above, TARGET])
    assert summary.fit.status is FitStatus.UNDERDETERMINED
    assert "at rank 512 and 1000 tokens the law goes above" in summary.fit.message
    assert max(t.high for t in summary.targets) <= points_of(POWER, noise=0.01).delta_loss.max()
    assert "rank 8" not in summary.fit.message


@pytest.mark.parametrize(
    ("rank", "length", "far"),
    [
        (8, 2000, False),
        (64, 8000, False),
        (65, 8000, True),
        (16, 32000, False),
        (16, 32001, True),
        (1, 250, False),
        (1, 249, True),
    ],
)
def test_beyond_four_times_what_was_measured_is_far(
    points_of: PointsOf, rank: int, length: int, far: bool
) -> None:
    # Ranks 1 to 16, lengths 1000 to 8000.
    assert is_far(points_of(POWER), DesignPoint(rank, length, 0)) is far


def test_far_targets_are_marked_and_told(points_of: PointsOf) -> None:
    data = points_of(CEILING, base_loss=12.4, noise=0.01)
    near, far = DesignPoint(64, 32000, 0), DesignPoint(16, 100_000, 0)
    summary = fit_law(data, targets=[near, far])
    assert [t.far for t in summary.targets] == [False, True]
    [note] = summary.limits
    assert "Beyond four times" in note and "(16, 100000)" in note and "32000)" not in note
    assert [t["far"] for t in summary.to_json()["targets"]] == [False, True]
    assert fit_law(data, targets=[near]).limits == ()
    # What lies further from the points is known less well.
    assert summary.targets[1].relative_half_width > summary.targets[0].relative_half_width


def test_a_placement_without_points_is_open_where_places_differ_much() -> None:
    """Without targets every placement is asked about, where its own points end."""
    data = placed_data({BLOCK: 1.0, DOWN: 4.0, ATTENTION: 0.3}, 1, n_texts=1)
    assert data.placement is not None
    known = fit_law(data, "ceiling")
    assert known.fit.status is FitStatus.CONVERGED
    target = PlacedPoint(DesignPoint(4, 1024, 200), ATTENTION)
    without = fit_law(data.subset(data.placement != 2), "ceiling", targets=[target])
    assert without.fit.status is FitStatus.UNDERDETERMINED
    assert "at attention, rank 4 and 1024 tokens" in without.fit.message


def test_far_is_by_parameters_where_there_are_several_placements() -> None:
    data = placed_data({BLOCK: 1.0, DOWN: 1.0}, 1)
    # The largest rank of both is 8, and a rank of down_proj has a third of the block's parameters.
    for placement in (BLOCK, DOWN):
        assert not is_far(data, PlacedPoint(DesignPoint(32, 512, 200), placement))
        assert is_far(data, PlacedPoint(DesignPoint(33, 512, 200), placement))
    # Nothing was measured in attention: of 2,304 parameters a rank, it is they that count.
    assert not is_far(data, PlacedPoint(DesignPoint(88, 512, 200), ATTENTION))
    assert is_far(data, PlacedPoint(DesignPoint(89, 512, 200), ATTENTION))


def test_steps_beyond_those_measured_are_far() -> None:
    data = placed_data({BLOCK: 1.0, DOWN: 1.0}, 1)
    most = int(data.train_steps.max())
    assert not is_far(data, PlacedPoint(DesignPoint(8, 512, 4 * most), DOWN))
    assert is_far(data, PlacedPoint(DesignPoint(8, 512, 4 * most + 1), DOWN))
    assert is_far(data, DesignPoint(8, 512, 4 * most + 1))
    # Points or a target that do not know their steps say nothing of them.
    assert not is_far(data, DesignPoint(8, 512, 0))
    unknown = replace(data, train_steps=0.0 * data.train_steps)
    assert not is_far(unknown, DesignPoint(8, 512, 4 * most + 1))
