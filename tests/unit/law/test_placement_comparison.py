"""Laws of several placements compared at what they did not see."""

from __future__ import annotations

import json

import pytest

from pmlray.errors import DataError
from pmlray.law import Placement, compare_placement_laws
from tests.unit.law.placed_points import BLOCK, placed, placed_data

# Attention is worth half of down_proj, in whichever layer.
KINDS = {"attention": 0.6, "mlp_in": 0.9, "mlp_out": 1.2}
BY_KIND: dict[Placement, float] = {
    placed(f"{kind} {layer}", (kind,), (layer,)): worth
    for kind, worth in KINDS.items()
    for layer in (5, 22)
}


def test_the_law_that_is_true_is_least_wrong_where_it_did_not_see() -> None:
    compared = compare_placement_laws(placed_data(BY_KIND, 0, sigma=0.04, n_texts=1), ("ceiling",))
    by = {errors.worth: errors for errors in compared}
    assert list(by) == ["parameters", "one_factor", "sites", "pooled"]
    assert sum(errors.weight for errors in compared) == pytest.approx(1.0)
    new_place = {name: e.new_placement.error for name, e in by.items() if e.new_placement}
    new_cell = {name: e.new_cell.error for name, e in by.items() if e.new_cell}
    assert len(new_place) == len(new_cell) == 4
    # Kin tell a new place; nothing else does. Any factor tells a new cell.
    assert max(new_place["sites"], new_place["pooled"]) < 0.6 * new_place["parameters"]
    assert new_place["sites"] < 0.6 * new_place["one_factor"]
    assert max(new_cell[n] for n in ("one_factor", "sites", "pooled")) < new_cell["parameters"]
    assert by["sites"].weight > by["one_factor"].weight > by["parameters"].weight
    json.dumps([errors.to_json() for errors in compared], allow_nan=False)


def test_where_every_parameter_is_worth_the_same_no_factors_are_needed() -> None:
    same = dict.fromkeys(list(BY_KIND)[::2], 1.0)
    parameters, *others = compare_placement_laws(placed_data(same, 1, n_texts=1), ("ceiling",))
    assert parameters.weight > max(errors.weight for errors in others)


def test_one_placement_is_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="at least two"):
        compare_placement_laws(placed_data({BLOCK: 1.0}, 0))
