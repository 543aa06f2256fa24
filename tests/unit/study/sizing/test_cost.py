"""What a sizing is said to cost before it is begun."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Model, Probe
from pmlray.memory import TaskSource
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.cost import SEARCH_COST, SizeCost, law_budget, looks_share, together
from pmlray.study.sizing.request import RecordSet, first_runs, search_spec
from pmlray.types import DesignPoint

PAIRS = tuple((f"q{i}", f"t{i}") for i in range(40))


def search_of_records() -> PreparedSearch:
    records = RecordSet(PAIRS, (8,) * len(PAIRS), (6,) * len(PAIRS))
    spec = search_spec(records, Model(id=TINY, dtype="float32"), Probe(layer=1), 8, 400, "plain")
    return PreparedSearch(spec, resolve_model(TINY, None), TaskSource("records", 0, pairs=PAIRS))


@pytest.mark.parametrize("search", [None, 0.0, 1.0, 100.0])
def test_the_promise_is_within_its_range(search: float | None) -> None:
    cost = SizeCost(search, 50.0, "calibrated", 2.0)
    assert cost.least <= cost.promised <= cost.most == (search or 0.0) + 100.0
    found = json.loads(json.dumps(cost.to_json(), allow_nan=False))
    assert found["predicted_gpu_seconds_range"] == [cost.least, cost.most]
    assert found["predicted_search_gpu_seconds"] == (search or 0.0)


def test_looks_cost_what_they_go_forward() -> None:
    # 40 records in batches of 8: 5 halves of a step, at 0, 1, 2, 4, 8, 16, 32, 64 and the end.
    assert looks_share(40, 8, 64) == pytest.approx(9 * 5 / 2 / 64)
    assert looks_share(3, 8, 64) == pytest.approx(9 / 2 / 64)


def test_a_search_within_its_budget_and_up_to_one_adapter_are_within_1_5_of_the_promise() -> None:
    search = search_of_records()
    cost = first_cost(search, False).at_rate(3.0, 1000.0)
    point = DesignPoint(8, 320, 400)
    one = cost.predict(point)
    budget = law_budget(cost, point).law_seconds
    assert budget == pytest.approx(SEARCH_COST * one, abs=0.05)
    promised = SizeCost(budget, one, "calibrated").promised
    for trainings in (0.0, 0.3, 1.0):
        # With room for a rate that is off by a sixth.
        assert abs(math.log(promised / (budget + trainings * one))) < math.log(1.28)


def test_the_first_runs_leave_the_search_some_of_its_budget() -> None:
    search = search_of_records()
    cost, runs = first_cost(search, False), first_runs(search)
    by_themselves = sum(cost.predict(run.point) for run in runs)
    pack = together(cost, runs)
    # The half budget on all records leaves the whole one's trunk for its decay alone.
    half = next(r.point for r in runs if r.point.seq_len == 320 and r.point.train_steps == 200)
    shared = (1.0 - search.spec.recipe.decay_share) * cost.predict(half)
    assert pack == pytest.approx(by_themselves - shared)
    whole = replace(half, train_steps=400)
    assert pack < 0.75 * law_budget(cost, whole).law_seconds
