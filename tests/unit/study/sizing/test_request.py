"""The search that `pmlray size` makes of records: its shape, its limits, its training."""

from __future__ import annotations

import math

import pytest

from pmlray.config.bases.models import KNOWN_MODELS, SMOLLM2, TINY
from pmlray.config.search_spec import Model, Probe
from pmlray.errors import DataError, SpecError
from pmlray.study.sizing.request import (
    RecordSet,
    Wanted,
    adapter_spec,
    check_capacity,
    default_layer,
    default_steps,
    first_points,
    largest_rank,
    search_spec,
)
from pmlray.types import DesignPoint


def records_of(n: int, tokens: int = 8) -> RecordSet:
    pairs = tuple((f"q{i}", f"t{i}") for i in range(n))
    return RecordSet(pairs, (tokens,) * n, (6,) * n)


@pytest.mark.parametrize("recall", [0.0, -0.1, 1.01, math.nan])
def test_a_recall_outside_its_range_is_refused(recall: float) -> None:
    with pytest.raises(SpecError, match=r"--recall .* above 0 and at most 1"):
        Wanted(recall, 0.9)


@pytest.mark.parametrize("confidence", [0.0, 0.4, 1.0, math.nan])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(SpecError, match="--confidence"):
        Wanted(0.99, confidence)


def test_the_search_spans_what_the_records_can_need() -> None:
    records, geometry = records_of(300, 8), KNOWN_MODELS[SMOLLM2]
    largest = largest_rank(records, geometry, Probe(layer=20).to_placement())
    # A power of two that gives every token as many parameters as a vocabulary of 49152 has bits.
    assert largest == 64 and 32 * 1152 < 2400 * math.log2(49152) <= 64 * 1152
    steps = default_steps(300)
    spec = search_spec(records, Model(id=SMOLLM2), Probe(layer=20), largest, steps, "plain")
    assert spec.space.lora_rank == (1, 2, 4, 8, 16, 32)
    assert spec.space.seq_len == (300, 600, 1200, 2400)
    assert spec.space.train_steps[-1] == steps
    assert {(p.seq_len, p.train_steps) for p in spec.target_points()} == {(2400, steps)}
    assert set(first_points(spec)) <= set(spec.space.points())
    again = search_spec(records, Model(id=SMOLLM2), Probe(layer=20), largest, steps, "plain")
    assert again.search_id == spec.search_id
    other = search_spec(
        records_of(300, 9), Model(id=SMOLLM2), Probe(layer=20), largest, steps, "plain"
    )
    assert other.search_id != spec.search_id


def test_one_record_makes_a_search_too() -> None:
    records, geometry = records_of(1, 5), KNOWN_MODELS[TINY]
    largest = largest_rank(records, geometry, Probe(layer=20).to_placement())
    spec = search_spec(records, Model(id=TINY), Probe(layer=1), largest, 3, "plain")
    assert spec.space.seq_len == (5,) and spec.space.train_steps[-1] == 3
    assert set(first_points(spec)) <= set(spec.space.points())


def test_the_adapter_is_trained_as_in_the_search_but_not_stopped_for_being_flat() -> None:
    records = records_of(20)
    spec = search_spec(records, Model(id=TINY), Probe(layer=1), 8, 100, "chat")
    own = adapter_spec(spec, records, DesignPoint(8, 160, 100))
    assert own.recipe.stop_gain == 0.0 and own.recipe.learning_rate == spec.recipe.learning_rate
    assert own.space.points() == (DesignPoint(8, 160, 100),)
    assert own.task.prompt_format == "chat" and own.probe == spec.probe


def test_the_papers_layers() -> None:
    assert (
        default_layer(KNOWN_MODELS["Qwen/Qwen3-8B"]) == 24
        and default_layer(KNOWN_MODELS[SMOLLM2]) == 20
    )


def test_records_beyond_any_adapter_are_refused_with_the_rank_they_need() -> None:
    records = records_of(1000, 8)
    with pytest.raises(DataError, match=r"8000 tokens.*rank 1 .*at least 2 \(--max-rank\)"):
        check_capacity(records, 1, 1152)
    check_capacity(records, 2, 1152)
