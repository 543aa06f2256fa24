"""Observations of adapters in several places: one law, with the place of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import DataError
from pmlray.law import law_data
from pmlray.types import DesignPoint, Observation
from tests.fakes import observe
from tests.unit.conftest import make_search, search_file  # noqa: F401

QV: Mapping[str, Any] = {
    "name": "q_proj, v_proj of all layers",
    "layers": [0, 1, 2, 3],
    "modules": ["self_attn.q_proj", "self_attn.v_proj"],
    "n_layers": 4,
    "params_per_rank": {"self_attn.q_proj": 128, "self_attn.v_proj": 96},
}
BLOCK: Mapping[str, Any] = {
    "name": "mlp of layer 1",
    "layers": [1],
    "modules": ["mlp"],
    "n_layers": 4,
    "params_per_rank": {"mlp": 128},
}


@pytest.fixture
def runs(make_search: Callable[..., PreparedSearch]) -> list[Observation]:  # noqa: F811
    search = make_search()
    points = [DesignPoint(rank, 32, 60) for rank in (1, 2, 4, 8)]
    planned = [search.plan_run(point, "sft", 0, 0, "law") for point in points]
    return [observe(run, 0, place, 0.0, 1e-3) for place, run in enumerate(planned)]


def at(o: Observation, placement: Mapping[str, Any] | None, per_rank: int) -> Observation:
    told = {"adapter_params_per_rank": per_rank} | ({"placement": placement} if placement else {})
    return replace(o, provenance={**o.provenance, **told})


def test_adapters_in_two_places_are_told_apart(runs: list[Observation]) -> None:
    placed = [at(runs[0], BLOCK, 128), *(at(o, QV, 896) for o in runs[1:])]
    data = law_data(placed)
    assert data.placement is not None and data.several_placements
    names = [data.placements[place].name for place in data.placement]
    assert names == [BLOCK["name"], *[QV["name"]] * 3]
    params = [data.placements[place].params_per_rank for place in data.placement]
    assert params == [128.0, 896.0, 896.0, 896.0]
    attention = data.placements[data.placement[1]]
    assert {site.kind for site in attention.sites} == {"attention"}
    assert [site.depth for site in attention.sites] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_one_place_is_the_law_in_rank(runs: list[Observation]) -> None:
    plain, placed = law_data(runs), law_data([at(o, QV, 896) for o in runs])
    assert placed.placement is None
    np.testing.assert_array_equal(placed.lora_rank, plain.lora_rank)


def test_a_run_that_does_not_tell_its_place_is_known_by_its_parameters(
    runs: list[Observation],
) -> None:
    """As a store does that was begun before provenance told places, and went on after."""
    assert law_data([at(runs[0], None, 896), *(at(o, QV, 896) for o in runs[1:])]).placement is None
    data = law_data([at(runs[0], None, 128), *(at(o, QV, 896) for o in runs[1:])])
    assert data.placement is not None
    unknown = data.placements[data.placement[0]]
    assert unknown.params_per_rank == 128 and unknown.sites[0].kind == "other"


@pytest.mark.parametrize(
    "change",
    [
        {"task": "phonebook"},
        {"provenance": {"model": "another"}},
    ],
    ids=["another task", "another base"],
)
def test_runs_without_a_law_in_common_are_refused(
    runs: list[Observation], change: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="no law in common"):
        law_data([*runs[:3], replace(runs[3], **change)])


def test_a_damaged_placement_is_told(runs: list[Observation]) -> None:
    damaged = {**QV, "n_layers": "four"}
    with pytest.raises(DataError, match=rf"{runs[3].run_key}.*placement"):
        law_data([*runs[:3], at(runs[3], damaged, 896)])
