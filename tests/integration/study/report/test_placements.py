"""The report of a search over three placements, against the law it was drawn from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmlray.law import Placement
from pmlray.law.placement_choice import needed_ranks
from pmlray.study.findings.answer import plain_answer
from pmlray.study.findings.placement_words import choice_sentences, largest_choice
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import law_panels
from pmlray.study.report.figures.placements import collapse_panels
from pmlray.study.report.figures.run_rows import residual_rows
from pmlray.study.report.first_screen import first_screen
from pmlray.study.report.placements import placements_section
from pmlray.study.report.settings import settings_list
from pmlray.types import Observation
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.conftest import Page
from tests.unit.study.placed_search import (
    HARM,
    PER_RANK,
    PLACES,
    SECONDS,
    STEPS,
    placed_search,
)

NAMES = tuple(PLACES)


def runs_at(result: SearchResult, name: str) -> list[Observation]:
    return [o for o in result.law_observations if o.point.placement == name]


def place_of(result: SearchResult, name: str) -> Placement:
    return next(p for p in law_of(result).unseen.data.placements if p.name == name)


def rows_with(spec: dict[str, Any], *fields: str) -> list[dict[str, Any]]:
    return next(rows for rows in rows_of(spec) if set(fields) <= set(rows[0]))


def test_the_choice_is_told_by_each_cost(placed_result: SearchResult) -> None:
    law = law_of(placed_result)
    by = {c.by: c for c in placed_result.choices}
    assert list(by) == ["parameters", "gpu_seconds", "prose"]
    wanted = law.average.base_loss - math.log(2)
    for choice in by.values():
        assert (choice.seq_len, choice.train_steps) == (192, STEPS)
        assert choice.delta_loss == pytest.approx(wanted)
    for name in NAMES:
        place = place_of(placed_result, name)
        ranks = needed_ranks(law.average_samples.at(place), 192, STEPS, wanted)
        middle = float(np.sort(ranks)[(ranks.size - 1) // 2])
        need = {k: next(n for n in c.needs if n.placement == place) for k, c in by.items()}
        assert need["parameters"].cost.value == middle * PER_RANK[name]
        # What was put into the runs, as closed forms.
        seconds = SECONDS[name] * 192 * STEPS
        assert need["gpu_seconds"].cost.value == pytest.approx(seconds, rel=0.03)
        assert need["gpu_seconds"].cost.low < need["gpu_seconds"].cost.high
    assert [n.placement.name for n in by["parameters"].needs] == ["attention", "block", "linear"]
    assert [n.placement.name for n in by["gpu_seconds"].needs] == ["block", "attention", "linear"]
    assert min(HARM, key=lambda name: HARM[name]) == by["prose"].needs[0].placement.name
    assert by["parameters"].p_first > 0.9


def test_the_choice_is_said_once_for_the_longest_text(placed_result: SearchResult) -> None:
    (said,) = largest_choice(placed_result.choices)
    first, second = placed_result.choices[0].needs[:2]
    assert said.startswith("To lower the loss of 192 tokens by 10.1 nats per token in 200 steps, ")
    assert f"the fewest parameters: attention at rank {first.lora_rank.value:.0f} (" in said
    assert f"{first.cost.value:,.0f} parameters, 90%: " in said
    assert f"then block at rank {second.lora_rank.value:.0f} (" in said
    assert "probability of this order " in said and "of all of them " in said
    assert "the least harm to prose: attention at rank" in said
    assert said in plain_answer(placed_result)
    assert dict(first_screen(placed_result).parts)["Placement"] == said
    assert len(choice_sentences(placed_result.choices)) == 3
    beyond = tuple(
        replace(c, needs=tuple(_unreached(need) for need in c.needs)) for c in placed_result.choices
    )
    (said,) = largest_choice(beyond)
    assert said.endswith("steps, no placement is likely to have a rank that is enough.")


def _unreached(need: Any) -> Any:
    nothing = replace(need.cost, value=math.inf, low=math.inf, high=math.inf)
    return replace(need, cost=nothing, lora_rank=nothing)


def test_the_table_says_what_was_measured(placed_result: SearchResult) -> None:
    table = placements_section(placed_result).tables[0]
    assert [row[0] for row in table.rows] == list(NAMES)
    for row in table.rows:
        name = str(row[0])
        runs = runs_at(placed_result, name)
        assert row[1:4] == (placed_result.spec.places[name].describe(), PER_RANK[name], len(runs))
        bits = max(
            o.supervised_tokens * o.delta_loss / math.log(2) / (PER_RANK[name] * o.point.lora_rank)
            for o in runs
        )
        assert row[6] == pytest.approx(bits)
        assert row[7] == pytest.approx(np.mean([o.gpu_seconds for o in runs]))
        assert row[8] == pytest.approx(1000 * SECONDS[name], rel=0.05)


def test_json_has_placements_worths_and_choices(
    placed_result: SearchResult, placed_folder: Path
) -> None:
    stored = json.loads((placed_folder / "report.json").read_text())
    assert [o["point"]["placement"] for o in stored["observations"]] == [
        o.point.placement for o in placed_result.observations
    ]
    assert [c["by"] for c in stored["law"]["choices"]] == ["parameters", "gpu_seconds", "prose"]
    worth = {row["name"]: row["value"] for row in stored["law"]["worth"]["placements"]}
    assert [(p["name"], p["worth"]["value"]) for p in stored["placements"]] == [
        (name, worth[name]) for name in NAMES
    ]
    assert stored["capacity"][0]["placement"] == "linear"
    assert [t["placement"] for t in stored["recall"]["targets"]] == list(NAMES)


def test_forecasts_of_recall_are_of_the_placements_own_ranks(placed_result: SearchResult) -> None:
    for forecast in placed_result.recall_result.forecasts:
        place = place_of(placed_result, str(forecast.placement))
        told = law_of(placed_result).average.predict(
            forecast.point.lora_rank, forecast.point.seq_len, STEPS, place
        )
        assert forecast.final_loss.value == pytest.approx(10.8 - float(told), abs=0.4)


def test_one_placement_so_far_has_its_law_and_says_so() -> None:
    result = placed_search(("block",), memft=None)
    assert result.placements == ("block",) and result.fitted_places == {"block": None}
    assert result.choices == () and collapse_panels(result) == ()
    assert "runs of one placement yet" in placements_section(result).text
    curves = next(rows for rows in rows_of(law_panels(result)[0].spec()) if "low" in rows[0])
    row = curves[7]
    told = law_of(result).average_samples.predict(row["lora_rank"], row["seq_len"], STEPS)
    assert row["delta_loss"] == pytest.approx(np.median(told), abs=1e-4)
    assert {r["placement"] for r in residual_rows(result)} == {"block"}


def test_settings_tell_each_placements_own(placed_result: SearchResult) -> None:
    told = dict(settings_list(placed_result, {}))
    assert told["Adapter parameters a rank"] == "linear 1,024, block 128, attention 224"
    assert "lora_rank at linear 1 2" in told["Space"]
    assert "block: mlp_block of layer 1" in told["Adapters at"]


def test_the_page_names_the_reference_and_every_placement(placed_page: Page) -> None:
    assert "counts the ranks of block that the adapter's parameters are worth" in placed_page.text
    assert "in ranks of block" in placed_page.text
    assert "placements" in [a["id"] for tag, a in placed_page.elements if tag == "section"]
    assert placed_page.figures() == set(placed_page.specs())
