"""When tokens pass 0.5, against plain loops and scipy."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from pmlray.law import crossing_steps, measure_transition, token_runs, token_table
from pmlray.law.recall.crossing import measure_crossings
from pmlray.types import Observation
from tests.unit.law.recall_runs import made_run

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100)


def logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def traced(key: str, centres: list[float], n_records: int) -> Observation:
    """A run whose tokens pass 0.5 at `centres`, the logit of p being linear in log(1 + step)."""
    table = [[logistic(2.0 * (math.log1p(s) - math.log1p(c))) for c in centres] for s in STEPS]
    run = made_run(key, 0.5, [], len(centres), n_records, 9.0, table[-1])
    kept = zip(STEPS[:-1], map(tuple, table), strict=False)
    return replace(run, token_p_curve=tuple(kept))


def test_the_step_is_that_at_which_p_is_a_half() -> None:
    centres = [0.4, 3.0, 5.7, 20.0, 63.0, 99.0, 300.0]
    (run,) = token_runs([traced("run-1", centres, 1)])
    found = crossing_steps(*token_table(run))
    assert found[:-1] == pytest.approx(centres[:-1], rel=1e-6)
    assert found[-1] == math.inf


def test_the_last_passage_counts() -> None:
    p = np.array(
        [[0.9, 0.2, 0.2, 0.7], [0.8, 0.9, 0.9, 0.3], [0.7, 0.4, 0.3, 0.2], [0.9, 0.6, 0.4, 0.9]]
    )
    found = crossing_steps(np.array([0, 1, 2, 4]), p)
    assert found[0] == 0.0 and found[2] == math.inf
    assert 2.0 < found[1] < 4.0 and 2.0 < found[3] < 4.0


@pytest.mark.parametrize("n_records", [1, 4])
def test_counts_quartiles_and_order_are_those_of_plain_loops(n_records: int) -> None:
    rng = np.random.default_rng(0)
    runs = [
        traced(f"run-{i}", (10 ** rng.uniform(0, 2.5, 40)).tolist(), n_records) for i in range(6)
    ]
    # One token comes and goes.
    first = runs[0]
    went = tuple((s, (0.9 if s == 8 else 0.1, *p[1:])) for s, p in first.token_p_curve)
    runs[0] = replace(first, token_p_curve=went, token_p=(0.2, *first.token_p[1:]))
    shares, base, place = [], [], []
    for o in runs:
        steps, base_p, places = [], [], []
        for i, p in enumerate(o.token_p):
            if p > 0.5:
                below = [s for s, row in o.token_p_curve if row[i] <= 0.5]
                steps.append(below[-1])
                base_p.append(o.token_p_curve[0][1][i])
                places.append(i % (40 // n_records))
        shares += [s / 100 for s in steps]
        base.append((len(steps), spearmanr(base_p, steps)[0]))
        place.append((len(steps), spearmanr(places, steps)[0]))
    found = measure_transition(token_runs(runs), rng).crossings
    assert found is not None
    assert (found.n_runs, found.n_tokens, found.crossed) == (6, 240, len(shares))
    assert found.lost == 1
    # The loops know only the step before, which the grid of steps doubles at most.
    for got, low in zip(
        (found.early, found.middle, found.late), np.quantile(shares, [0.25, 0.5, 0.75]), strict=True
    ):
        assert low <= got <= 2 * low + 0.01
    for got, by_run in ((found.by_base_p, base), (found.by_place, place)):
        expected = sum(n * r for n, r in by_run) / sum(n for n, _ in by_run)
        assert got == pytest.approx(expected, abs=0.1)
    json.dumps(found.to_json(), allow_nan=False)


def test_without_tables_there_are_no_crossings() -> None:
    bare = token_runs([made_run("run-1", 0.5, [1], 4, 1, 9.0)])
    assert measure_crossings(bare) is None
    still = replace(bare[0].observation, token_p_curve=((0, (0.9, 0.1, 0.9, 0.9)),))
    assert measure_crossings(token_runs([still])) is None
