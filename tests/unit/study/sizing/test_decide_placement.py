"""Which placement is taken for a set of records, on laws whose truth is known."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import CostModel
from pmlray.design.cost import PlaceWork
from pmlray.errors import DataError
from pmlray.law import CeilingLaw, LawSummary
from pmlray.study.findings.fitted_runs import fit_observations
from pmlray.study.sizing.choose_rank import RankChoice, choose_rank
from pmlray.study.sizing.decide_placement import (
    PlaceLimit,
    PlacementDecision,
    Prefer,
    decide_placement,
    describe_decision,
    measured_placements,
)
from pmlray.study.sizing.request import Wanted
from pmlray.types import DesignPoint, Observation, Recall
from tests.fakes import observe
from tests.unit.study.sizing.test_compared import compared

BASE_LOSS, TOTAL, STEPS = 4.0, 2400, 1500
DOWN, QUERIES, LINEAR = "down_proj-20", "q_proj+v_proj", "all-linear"
PLACES = {name: PlaceLimit(DesignPoint(32, TOTAL, STEPS, name), 500) for name in (DOWN, QUERIES)}
# Of as many parameters a rank: the two placements differ in nothing but what these are worth.
PER_RANK = {DOWN: 2112.0, QUERIES: 57600.0, LINEAR: 305280.0}
LAW = CeilingLaw(160.0, 0.9, 0.5, 0.0, 3.0, BASE_LOSS)
COSTS = dict.fromkeys(
    PLACES,
    CostModel(1e-5, 10, 8, places={DOWN: PlaceWork(1.0, 0.0, 21), QUERIES: PlaceWork(3.0, 0.0, 0)}),
)

WANTED = Wanted(0.9, 0.9)
# Fits by the worths of their points, as each takes most of a second.
LAWS = dict[tuple[tuple[str, float], ...], LawSummary]()


def runs(
    search: PreparedSearch, worths: Mapping[str, float], harm: Mapping[str, float] | None = None
) -> tuple[Observation, ...]:
    """A grid at each placement of a known law of effective rank, in ranks of DOWN."""
    rng, found = np.random.default_rng(0), []
    for name, worth in worths.items():
        for rank in (1, 4, 16) if name == DOWN else (1, 2, 4):
            for i, length in enumerate((TOTAL // 4, TOTAL // 2, TOTAL)):
                point = DesignPoint(rank, length, STEPS, name)
                told = rank * worth * PER_RANK[name] / PER_RANK[DOWN]
                delta = float(LAW.predict(told, length, STEPS)) * (1 + 0.01 * rng.standard_normal())
                loss = max(BASE_LOSS - delta, 1e-3)
                run = search.plan_run(point, "sft", 1, 0, "law")
                exact = float(loss < 0.05)
                prose = None if harm is None else -harm[name] + 0.01 * (-1) ** (rank + i)
                o = replace(
                    observe(run, 0, 0, 0.0, 1e-4),
                    base_loss=BASE_LOSS,
                    gpu_seconds=COSTS[name].predict(point) if name in COSTS else 1.0,
                    charged_steps=float(STEPS),
                    final_loss=loss,
                    recall=Recall(exact, exact, exact, 0),
                    prose_delta_loss=prose,
                    provenance={"placement": placement_facts(search, point)},
                )
                found.append(o)
    return tuple(found)


@pytest.fixture(scope="module")
def search() -> PreparedSearch:
    return compared()


def decided(
    search: PreparedSearch,
    worths: Mapping[str, float],
    prefer: Prefer = "parameters",
    harm: Mapping[str, float] | None = None,
    places: Mapping[str, PlaceLimit] = PLACES,
) -> PlacementDecision:
    observations = runs(search, worths, harm)
    key = tuple(worths.items())
    if key not in LAWS:
        law = fit_observations(search.spec, observations)
        assert law is not None
        LAWS[key] = law
    law = LAWS[key]
    ranks: dict[str, RankChoice] = {}
    for name, placement in measured_placements(law, places).items():
        with contextlib.suppress(DataError):
            place = places[name]
            ranks[name] = choose_rank(
                law, observations, WANTED, place.point, 8.0, place.limit, placement=placement
            )
    return decide_placement(law, observations, places, ranks, prefer, COSTS)


def test_the_placement_with_the_fewest_parameters_is_found(search: PreparedSearch) -> None:
    found = decided(search, {DOWN: 1.0, QUERIES: 1.0})
    # One rank of the queries' is 27 of the other's.
    assert (found.chosen, found.runner_up) == (DOWN, QUERIES) and found.told_apart
    first = found.choice.needs[0]
    exact = LAW.invert_rank(TOTAL, STEPS, found.choice.delta_loss)
    assert first.lora_rank.value == pytest.approx(exact, rel=0.25, abs=1.0)
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    row = stored["placements"][0]
    assert row["parameters"] == row["trained_rank"] * PER_RANK[DOWN] == found.ranks[DOWN] * 2112
    text = describe_decision(stored)
    assert f"placement {DOWN} for the fewest parameters, then {QUERIES}; that order is" in text
    assert f"9 at {DOWN}" in text
    # What a parameter is worth may outweigh the coarser ranks.
    other = decided(search, {DOWN: 0.03, QUERIES: 0.1})
    assert other.chosen == QUERIES and other.told_apart


def test_costs_and_harm_order_them_otherwise(search: PreparedSearch) -> None:
    worths = {DOWN: 0.03, QUERIES: 0.1}
    cheap = decided(search, worths, "gpu-seconds")
    # A training through a third of the layers is taken, though it has more parameters.
    assert cheap.chosen == DOWN and cheap.told_apart
    assert cheap.choice.needs[0].cost.value < 0.5 * cheap.choice.needs[1].cost.value
    gentle = decided(search, worths, "prose", {DOWN: 0.1, QUERIES: 0.4})
    assert gentle.chosen == DOWN and gentle.told_apart
    assert "least harm to prose" in describe_decision(gentle.to_json())
    assert decided(search, worths, "prose", {DOWN: 0.4, QUERIES: 0.1}).chosen == QUERIES
    with pytest.raises(DataError, match="0 runs measured"):
        decided(search, worths, "prose")


def test_what_is_not_told_apart_is_said_and_has_fewer_parameters(search: PreparedSearch) -> None:
    found = decided(search, {DOWN: 1.0, QUERIES: 1.0}, "prose", {DOWN: 0.2, QUERIES: 0.2})
    assert not found.told_apart and found.chosen == DOWN
    stored = found.to_json()
    text = describe_decision(stored)
    first = stored["placements"][0]["placement"]
    said = "does not tell the two apart" if first == DOWN else f"does not tell it from {first} by"
    assert said in text and "parameters" in text
    # Against the law alone, for the sake of the wanted confidence: its reason is told.
    text = describe_decision({**stored, "p_first": 0.1, "chosen": first, "runner_up": "other"} | {
        "placements": [stored["placements"][0], {**stored["placements"][1], "placement": "other"}]
    })  # fmt: skip
    assert "by the law alone other needs less (90 % sure)" in text


def test_ranks_that_are_not_allowed_are_none(search: PreparedSearch) -> None:
    tight = {name: replace(place, limit=3) for name, place in PLACES.items()}
    found = decided(search, {DOWN: 0.03, QUERIES: 0.1}, places=tight)
    assert found.chosen == QUERIES
    assert f"{DOWN} at no rank allowed" in describe_decision(found.to_json())


def test_a_placement_without_runs_is_named_and_one_alone_is_no_choice(
    search: PreparedSearch,
) -> None:
    three = {**PLACES, LINEAR: PlaceLimit(DesignPoint(4, TOTAL, STEPS, LINEAR), 64)}
    found = decided(search, {DOWN: 1.0, QUERIES: 1.0}, places=three)
    assert found.unmeasured == (LINEAR,)
    assert f"not compared, for want of runs: {LINEAR}" in describe_decision(found.to_json())
    with pytest.raises(DataError, match="nothing tells which is best"):
        decided(search, {DOWN: 1.0})
