"""Placements that a sizing compares by default, what they are called, and the search of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pmlray.config.adapters.adapter_spec import Adapter, Probe
from pmlray.config.adapters.placement import MLP_BLOCK
from pmlray.config.bases.geometry import Geometry, OwnLayers
from pmlray.config.bases.models import KNOWN_MODELS, SMOLLM2, TINY, resolve_model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Model
from pmlray.errors import SpecError
from pmlray.law import placement_at
from pmlray.memory import TaskSource
from pmlray.study.sizing.compared import (
    auto_places,
    compared_first_runs,
    compared_spec,
    named_places,
    spec_at,
)
from pmlray.study.sizing.request import adapter_spec, largest_rank
from pmlray.types import DesignPoint
from tests.unit.study.sizing.test_request import records_of

SMALL = KNOWN_MODELS[SMOLLM2]


def with_modules(*names: str) -> Geometry:
    """A base of the general path whose layers have these linear modules."""
    own = OwnLayers("transformer.h", dict.fromkeys(names, (64, 64)), {}, 99, True)
    return replace(KNOWN_MODELS[TINY], own=own)


def told(geometry: Geometry) -> dict[str, str]:
    places = named_places(auto_places(geometry), geometry)
    return {name: place.describe() for name, (place, _) in places.items()}


def test_auto_is_what_people_deploy_and_tells_kinds_and_depths_apart() -> None:
    assert told(SMALL) == {
        "all-linear": "all-linear of all layers",
        "q_proj+v_proj": "q_proj, v_proj of all layers",
        "gate_proj+up_proj+down_proj-20-29": "gate_proj, up_proj, down_proj of layers 20 to 29",
        "down_proj-20": "down_proj of layer 20",
    }
    kinds = set[frozenset[str]]()
    for name, (_, sites) in named_places(auto_places(SMALL), SMALL).items():
        assert MLP_BLOCK not in sites.modules
        at = [(layer, module, 1.0) for layer in sites.layers for module in sites.modules]
        kinds.add(frozenset(site.kind for site in placement_at(name, at, 30).sites))
    assert len(kinds) == 4


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        # GPT-2, Falcon, Phi-3, and a base of which only one module can be adapted.
        (
            ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
            {
                "all-linear": "all-linear of all layers",
                "c_attn+c_proj": "c_attn, attn.c_proj of all layers",
                "c_fc+c_proj-2-3": "c_fc, mlp.c_proj of layers 2 to 3",
                "c_proj-2": "mlp.c_proj of layer 2",
            },
        ),
        (
            ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_4h_to_h"),
            {
                "all-linear": "all-linear of all layers",
                "query_key_value+dense": "query_key_value, dense of all layers",
                "dense_4h_to_h-2-3": "dense_4h_to_h of layers 2 to 3",
                "dense_4h_to_h-2": "dense_4h_to_h of layer 2",
            },
        ),
        (("mixer.in", "mixer.out"), {}),
    ],
)
def test_auto_follows_the_bases_own_names(
    modules: tuple[str, ...], expected: dict[str, str]
) -> None:
    geometry = with_modules(*modules)
    if expected:
        assert told(geometry) == expected
    else:
        with pytest.raises(SpecError, match="all-linear is all there is to compare"):
            told(geometry)


def test_names_are_of_their_own_and_no_place_comes_twice() -> None:
    twice = (Probe(placement="down_proj", layer=3), Adapter(target_modules="down_proj"))
    assert list(named_places(twice, SMALL)) == ["down_proj-3", "down_proj"]
    scaled = Adapter(target_modules="down_proj", alpha="2r")
    assert list(named_places((*twice, scaled), SMALL)) == [
        "down_proj-3",
        "down_proj",
        "down_proj-2",
    ]
    with pytest.raises(SpecError, match=r"mlp\.down_proj of all layers is where down_proj is"):
        named_places((*twice, Adapter(target_modules="mlp.down_proj")), SMALL)
    with pytest.raises(SpecError, match="name two or more"):
        named_places(twice[:1], SMALL)


def compared() -> PreparedSearch:
    records = records_of(300, 8)
    places = {
        name: (place, largest_rank(records, SMALL, sites))
        for name, (place, sites) in named_places(auto_places(SMALL), SMALL).items()
    }
    spec = compared_spec(records, Model(id=SMOLLM2, dtype="float32"), places, 1500, "plain")
    task = TaskSource("records", 0, pairs=records.pairs)
    return PreparedSearch(spec, replace(resolve_model(SMOLLM2, None), geometry=SMALL), task)


def test_one_search_compares_all_and_scores_prose() -> None:
    search = compared()
    spec = search.spec
    assert spec.evaluate.prose and spec.design.n_initial == 4
    targets = {p.placement: p for p in spec.target_points()}
    assert targets["down_proj-20"] == DesignPoint(16, 2400, 1500, "down_proj-20")
    assert targets["all-linear"] == DesignPoint(2, 2400, 1500, "all-linear")
    alone = adapter_spec(spec_at(spec, "down_proj-20"), records_of(300), DesignPoint(3, 2400, 1500))
    assert alone.place == Adapter(target_modules="down_proj", layers=(20,))
    # The same run, whichever of the two searches plans it.
    mine = replace(search, spec=spec_at(spec, "down_proj-20"))
    point = DesignPoint(4, 2400, 1500)
    there = search.plan_run(replace(point, placement="down_proj-20"), "sft", 1, 0, "law")
    assert mine.plan_run(point, "sft", 1, 0, "law").run_key == there.run_key


def test_the_first_runs_are_two_at_each_place_that_tell_of_it() -> None:
    search = compared()
    runs = compared_first_runs(search)
    at = {name: [r.point for r in runs if r.point.placement == name] for name in search.placements}
    assert {name: len(points) for name, points in at.items()} == dict.fromkeys(at, 2)
    cells = set(search.spec.space.points())
    for points in at.values():
        assert cells.issuperset(points)
        # As many epochs as the whole set.
        assert {round(p.seq_len / p.train_steps, 1) for p in points} == {1.6}
    small = at["down_proj-20"]
    loads = [p.lora_rank * 2112 / (p.seq_len * math.log2(49152)) for p in small]
    assert 0.7 < loads[0] < 1.4 and 0.15 < loads[1] < 0.4
    # Where rank 1 has far more parameters than the records have bits, the longest text tells most.
    assert at["all-linear"][0] == DesignPoint(1, 2400, 1500, "all-linear")
