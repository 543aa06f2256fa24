"""What intervals and tests of recall promise of chance: many runs each."""

from __future__ import annotations

import numpy as np
import pytest

from pmlray.law import RecallLaw, fit_recall
from pmlray.study.findings.stubborn_tokens import token_tallies
from tests.unit.law.recall.test_recall_law import BOOK, TRUE, runs_of
from tests.unit.study.findings.test_stubborn_tokens import world

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("law", "tokens", "n_records"), [(TRUE, 40, 1), (BOOK, 10, 8)])
def test_intervals_hold_what_new_runs_measure(law: RecallLaw, tokens: int, n_records: int) -> None:
    fit = fit_recall(runs_of(law, 40, n_records, 3, tokens))
    rng = np.random.default_rng(0)
    inside = []
    for o in runs_of(law, 150, n_records, 4, tokens):
        drawn = fit.sample(np.full(400, o.final_loss), tokens, n_records, rng)
        for name in ("token", "prefix", "exact"):
            values, measured = getattr(drawn, name), getattr(o.recall, name)
            # Ties count at random, so that whole numbers do not pass for wide intervals.
            rank = np.mean(values < measured - 1e-9)
            rank += rng.random() * np.mean(np.abs(values - measured) <= 1e-9)
            inside.append((name, 0.05 < rank < 0.95))
    for name in ("token", "prefix", "exact"):
        assert 0.82 <= np.mean([held for n, held in inside if n == name]) <= 0.97


def test_chance_is_rarely_called_anything() -> None:
    wrong = sum(
        any(t.verdict != "capacity" for t in token_tallies(world(np.random.default_rng(i))))
        for i in range(60)
    )
    # Two families of tests at 5 % each: more than 12 of 60 has a chance below 1 %.
    assert wrong <= 12
