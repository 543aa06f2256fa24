"""`law.predict`: the law's samples at any points, as the targets of a fit have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import LawData, LawSummary, fit_law
from pmlray.law.prediction import CHUNK
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

RANKS, LENGTHS, STEPS = (1, 2, 4, 8), (32, 64, 128, 256), (50, 100)
TARGET = DesignPoint(8, 128, 100)


def points(steps: tuple[int, ...] = STEPS, known: bool = True) -> LawData:
    grid = np.array([(r, n, t) for r in RANKS for n in LENGTHS for t in steps], dtype=float)
    r, length, t = grid.T
    rng = np.random.default_rng(1)
    delta = TRUE_LAW.predict(r, length, t) * (t / 100) ** 0.2 + 0.02 * rng.standard_normal(r.size)
    base = np.full(r.size, 12.0)
    cluster = np.arange(r.size, dtype=np.int64) % 2
    return LawData(r, length, t if known else 0 * t, delta, base, base - delta, cluster)


@pytest.fixture(scope="module")
def law() -> LawSummary:
    return fit_law(points(), targets=[TARGET])


@pytest.fixture(scope="module")
def at_one_budget() -> LawSummary:
    return fit_law(points((100,)))


def test_a_point_is_predicted_as_the_same_target_is(law: LawSummary) -> None:
    (target,) = law.targets
    found = law.predict(TARGET.lora_rank, TARGET.seq_len, TARGET.train_steps)
    assert (found.median, found.lower, found.upper) == (
        pytest.approx(target.delta_loss), pytest.approx(target.low), pytest.approx(target.high)
    )  # fmt: skip
    assert isinstance(found.median, float) and found.far is False and found.level == 0.9
    assert isinstance(found.run_lower, float) and isinstance(found.run_upper, float)
    assert found.run_lower < found.lower < found.upper < found.run_upper
    assert found.lower < float(TRUE_LAW.predict(8, 128, 100)) < found.upper


def test_lists_broadcast_and_are_predicted_one_by_one(law: LawSummary) -> None:
    found = law.predict([[1], [8]], [32, 64, 256], 100)
    assert np.shape(found.median) == np.shape(found.far) == np.shape(found.seq_len) == (2, 3)
    for i, rank in enumerate((1, 8)):
        for j, length in enumerate((32, 64, 256)):
            alone = law.predict(rank, length, 100)
            assert np.asarray(found.median)[i, j] == pytest.approx(alone.median)
            assert np.asarray(found.upper)[i, j] == pytest.approx(alone.upper)
    assert np.shape(law.predict([], 32, 100).median) == (0,)


def test_many_points_are_predicted_in_parts(law: LawSummary) -> None:
    lengths = np.linspace(32, 256, CHUNK + 7)
    found = law.predict(4, lengths, 100)
    last = law.predict(4, lengths[-1], 100)
    assert np.asarray(found.lower)[-1] == pytest.approx(last.lower)


def test_what_lies_far_beyond_the_points_is_marked(law: LawSummary) -> None:
    found = law.predict([1, 32, 33], 64, 100)
    assert np.asarray(found.far).tolist() == [False, False, True]
    assert law.predict(4, 1025, 100).far and law.predict(4, 64, 401).far
    assert law.predict(4, 7, 100).far and not law.predict(4, 64, 400).far
    assert "far" in repr(law.predict(33, 64, 100)) and "1 of them far" in repr(found)
    assert "far beyond the points" in found._repr_html_()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0, 64, 100), "lora_rank has 0"),
        ((4, -3, 100), "seq_len has -3"),
        ((4, 64, 0), "train_steps has 0"),
        ((float("nan"), 64, 100), "lora_rank has nan"),
        ((4, float("inf"), 100), "seq_len has inf"),
        (("many", 64, 100), "expected a number"),
        (([1, 2], [1, 2, 3], 100), "do not broadcast"),
        ((4, 64), "50 to 100 steps"),
        ((4, 64, 100, "q_proj"), "knows no placement 'q_proj'"),
    ],
)
def test_what_cannot_be_predicted_is_refused(law: LawSummary, given: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        law.predict(*given)


def test_a_law_of_one_budget_tells_nothing_of_others(at_one_budget: LawSummary) -> None:
    assert at_one_budget.predict(4, 64).median == at_one_budget.predict(4, 64, 100).median
    assert at_one_budget.predict(4, 64).train_steps == 100
    with pytest.raises(DataError, match="all of 100 steps"):
        at_one_budget.predict(4, 64, [100, 200])
    unknown = fit_law(points((100,), known=False))
    assert unknown.predict(4, 64).train_steps == 0
    with pytest.raises(DataError, match="do not say their steps"):
        unknown.predict(4, 64, 100)


def test_a_notebook_shows_text_as_text(law: LawSummary) -> None:
    shown = law._repr_html_()
    assert law.headline in shown and "rank_exponent" in shown and "(8, 128)" in shown
    assert repr(law) == f"LawSummary({law.title})"
