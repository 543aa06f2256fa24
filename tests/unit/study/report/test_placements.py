"""The report of a search over three placements, against the law it was drawn from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest

from pmlray.law import Placement
from pmlray.law.placement_choice import needed_ranks
from pmlray.study.findings.answer import plain_answer
from pmlray.study.findings.placement_words import choice_sentences, largest_choice
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import capacities, capacity_text
from pmlray.study.report.figures.errors import residual_rows
from pmlray.study.report.figures.law import law_panels
from pmlray.study.report.figures.memft import memft_panels
from pmlray.study.report.figures.placements import collapse_panels, density_panels, worth_panels
from pmlray.study.report.figures.runs import cost_panels, heat_panels, token_panels
from pmlray.study.report.figures.search import order_panels
from pmlray.study.report.figures.style import Panel
from pmlray.study.report.figures.surface import surface_panels
from pmlray.study.report.headline import headline
from pmlray.study.report.placements import placement_rows, placements_section
from pmlray.study.report.search_report import report_json, write_report
from pmlray.study.report.sections import report_sections
from pmlray.study.report.tables import settings_list
from pmlray.types import Observation
from tests.unit.study.conftest import Page
from tests.unit.study.placed_search import (
    HARM,
    PER_RANK,
    PLACES,
    SECONDS,
    STEPS,
    WORTHS,
    placed_search,
)
from tests.unit.study.report.test_search_report import law_of, rows_of

NAMES = tuple(PLACES)
VALIDATED = (
    *("placement-worth", "placement-bits", "placement-collapse-192", "delta-by-length-block"),
    *("law-surface-block", "predicted-measured", "residuals-by-params", "residuals-by-placement"),
    *("heat-final-loss", "order", "cost-by-length", "token-recall-by-loss", "stored-bits"),
)


def runs_at(result: SearchResult, name: str) -> list[Observation]:
    return [o for o in result.law_observations if o.point.placement == name]


def place_of(result: SearchResult, name: str) -> Placement:
    return next(p for p in law_of(result).unseen.data.placements if p.name == name)


def rows_with(panel: Any, *fields: str) -> list[dict[str, Any]]:
    return next(rows for rows in rows_of(panel.spec()) if set(fields) <= set(rows[0]))


@pytest.fixture(scope="module")
def specs(placed_result: SearchResult) -> dict[str, dict[str, Any]]:
    """The specification of every figure, by its key."""
    panels = [p for section in report_sections(placed_result, {}) for p in section.panels]
    assert len({panel.key for panel in panels}) == len(panels)
    return {panel.key: panel.spec() for panel in panels}


def test_every_figure_has_rows_and_those_of_placements_are_valid(
    specs: dict[str, dict[str, Any]],
) -> None:
    for name in NAMES:
        assert specs.keys() >= {
            f"{stem}-{name}" for stem in ("delta-by-length", "delta-by-rank", "law-surface")
        }
    assert not {"delta-by-length", "delta-by-rank", "law-surface", "residuals-by-rank"} & {*specs}
    for key, spec in specs.items():
        assert all(len(rows) > 0 for rows in rows_of(spec)), key
        assert "tooltip" in json.dumps(spec), key
    # Held against Vega-Lite's schema, which takes 0.1 s a figure: all that placements change.
    for key in VALIDATED:
        alt.TopLevelSpec.validate(specs[key])


def test_no_figure_with_a_rank_mixes_placements(specs: dict[str, dict[str, Any]]) -> None:
    """Every row of a run or a cell names its placement, or its figure is of one alone."""
    for key, spec in specs.items():
        for rows in rows_of(spec):
            alone = any(key.endswith(f"-{name}") for name in NAMES)
            if "lora_rank" in rows[0] and not alone:
                assert all(row["placement"] in NAMES for row in rows), key


def test_curves_are_the_laws_at_the_placement(placed_result: SearchResult) -> None:
    samples = law_of(placed_result).average_samples
    for panel, name in zip(law_panels(placed_result)[::2], NAMES, strict=True):
        assert panel.key == f"delta-by-length-{name}" and panel.title.startswith(f"{name}: ")
        curves = rows_with(panel, "low", "high")
        r, length = (np.array([float(row[k]) for row in curves]) for k in ("lora_rank", "seq_len"))
        told = samples.at(place_of(placed_result, name)).predict(r, length, STEPS)
        assert [row["delta_loss"] for row in curves] == pytest.approx(
            np.median(told, axis=0), abs=1e-4
        )
        dots = rows_with(panel, "token_recall")
        assert sorted(row["delta_loss"] for row in dots) == sorted(
            round(o.delta_loss, 5) for o in runs_at(placed_result, name)
        )


def test_surfaces_and_boundaries_are_in_ranks_of_their_placement(
    placed_result: SearchResult,
) -> None:
    law = law_of(placed_result)
    for panel, name in zip(surface_panels(placed_result), NAMES, strict=True):
        place = place_of(placed_result, name)
        cells = rows_with(panel, "below")
        r, length = (np.array([row[k] for row in cells]) for k in ("lora_rank", "seq_len"))
        drawn = [row["delta_loss"] for row in cells]
        assert law.average.predict(r, length, STEPS, place) == pytest.approx(drawn, rel=2e-3)
        line = [row for row in rows_with(panel, "low", "high") if row["lora_rank"] is not None]
        for row in line[::5]:
            told = law.average_samples.at(place).predict(row["lora_rank"], row["seq_len"], STEPS)
            assert np.sort(told)[told.size - 1 - told.size // 2] == pytest.approx(
                10.8 - math.log(2), abs=5e-3
            )


def test_worths_are_those_drawn(placed_result: SearchResult) -> None:
    rows = {r["placement"]: r for r in rows_with(worth_panels(placed_result)[0], "worth")}
    assert list(rows) == list(NAMES)
    for name in NAMES:
        assert rows[name]["low"] <= WORTHS[name] <= rows[name]["high"]
        assert rows[name]["n_runs"] == len(runs_at(placed_result, name))
    assert (rows["block"]["low"], rows["block"]["high"]) == (1, 1)


def test_the_law_collapses_on_effective_parameters(placed_result: SearchResult) -> None:
    law = law_of(placed_result)
    worths = {row.name: row.worth for row in placement_rows(placed_result)}
    panels = collapse_panels(placed_result)
    assert [p.key for p in panels] == [f"placement-collapse-{n}" for n in (48, 96, 192)]
    shown = 0
    for panel, length in zip(panels, (48, 96, 192), strict=True):
        dots = rows_with(panel, "placement")
        shown += len(dots)
        for row in dots:
            assert row["seq_len"] == length
            worth = worths[row["placement"]]
            assert worth is not None
            own = worth.value * PER_RANK[row["placement"]] * row["lora_rank"]
            assert row["effective_params"] == pytest.approx(own, rel=1e-5)
        curve = rows_with(panel, "low", "high")
        params = np.array([row["effective_params"] for row in curve])
        told = law.average_samples.predict(params / PER_RANK["block"], length, STEPS)
        middle = np.median(told, axis=0)
        assert [row["delta_loss"] for row in curve] == pytest.approx(middle, abs=1e-3)
        # The runs of all placements lie about the one curve: noise of 0.15 nats.
        at = np.interp([math.log(r["effective_params"]) for r in dots], np.log(params), middle)
        off = np.array([row["delta_loss"] for row in dots]) - at
        assert np.sqrt(np.mean(off**2)) < 0.3
        encoding = panel.spec()["layer"][-1]["encoding"]
        for channel in ("color", "shape"):
            assert encoding[channel]["field"] == "placement"
            assert encoding[channel]["scale"]["domain"] == list(NAMES)
        assert len(set(encoding["shape"]["scale"]["range"])) == 3
    assert shown == len(placed_result.law_observations)


def test_bits_lie_over_parameters(placed_result: SearchResult) -> None:
    found = capacities(placed_result)
    rows = rows_with(density_panels(found, NAMES)[0], "bits_per_param")
    for row, o in zip(rows, placed_result.law_observations, strict=True):
        name = str(o.point.placement)
        n_params = PER_RANK[name] * o.point.lora_rank
        bits = o.supervised_tokens * o.delta_loss / math.log(2) / n_params
        assert (row["placement"], row["n_params"]) == (name, n_params)
        assert row["bits_per_param"] == pytest.approx(bits, abs=1e-5)
    assert "at rank 1 at attention" in capacity_text(found)


def test_residuals_are_those_of_the_law_at_each_placement(placed_result: SearchResult) -> None:
    law = law_of(placed_result)
    rows = residual_rows(placed_result)
    for row, o in zip(rows, placed_result.law_observations, strict=True):
        own = law.fit.law_at(place_of(placed_result, str(o.point.placement)))
        told = float(own.predict(o.point.lora_rank, o.supervised_tokens, STEPS, o.base_loss))
        assert row["residual"] == pytest.approx(o.delta_loss - told, abs=2e-5)
    # The same that the law has tested, by itself.
    stored = law.to_json()["residuals"]["points"]
    assert sorted(r["residual"] for r in rows) == pytest.approx(
        sorted(p["residual"] for p in stored), abs=2e-5
    )
    assert {p["placement"] for p in stored} == {*NAMES}
    along = [trend.along for trend in law.residuals.trends]
    assert along[0] == "effective parameters" and "lora_rank" not in along


def test_cells_of_the_same_rank_stay_apart(placed_result: SearchResult) -> None:
    cells = rows_with(heat_panels(placed_result)[0], "n_runs")
    runs: dict[tuple[Any, ...], list[float]] = {}
    for o in placed_result.observations:
        if o.method == "sft":
            key = (o.point.placement, o.point.lora_rank, o.point.seq_len)
            runs.setdefault(key, []).append(o.final_loss)
    drawn = {(r["placement"], r["lora_rank"], r["seq_len"]): r["final_loss"] for r in cells}
    assert drawn == pytest.approx({k: np.mean(v) for k, v in runs.items()}, abs=1e-5)
    order = rows_with(order_panels(placed_result)[0], "order")
    assert {row["at_rank"] for row in order} == {
        f"{o.point.placement} r{o.point.lora_rank}" for o in placed_result.law_observations
    }
    assert {row["visit"] for row in order} == {0}  # No cell has two runs.
    costs = rows_with(cost_panels(placed_result)[1], "supervised_tokens")
    assert {row["placement"] for row in costs} == {*NAMES}


def test_titles_and_labels_name_the_placement(placed_result: SearchResult) -> None:
    assert all(" at " in panel.title for panel in token_panels(placed_result))
    pairs = rows_with(memft_panels(placed_result.pairs)[0], "recall")
    assert {row["pair"] for row in pairs} == {"1: block r2 l96", "2: linear r2 l96"}


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
    assert "in this order with" in said and "the whole order with" in said
    assert "the least harm to prose: attention at rank" in said
    assert said in plain_answer(placed_result) and said in headline(placed_result).sentences
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


def test_json_has_placements_worths_and_choices(placed_result: SearchResult) -> None:
    stored = json.loads(json.dumps(report_json(placed_result, {}), allow_nan=False))
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
    curves = rows_with(law_panels(result)[0], "low", "high")
    row = curves[7]
    told = law_of(result).average_samples.predict(row["lora_rank"], row["seq_len"], STEPS)
    assert row["delta_loss"] == pytest.approx(np.median(told), abs=1e-4)
    assert {r["placement"] for r in residual_rows(result)} == {"block"}
    report_json(result, {})


def test_settings_tell_each_placements_own(placed_result: SearchResult) -> None:
    told = dict(settings_list(placed_result, {}))
    assert told["Adapter parameters a rank"] == "linear 1,024, block 128, attention 224"
    assert "lora_rank at linear 1 2" in told["Space"]
    assert "block: mlp_block of layer 1" in told["Adapters at"]


@pytest.mark.usefixtures("short_pages")
def test_the_page_names_the_reference_and_every_placement(
    placed_result: SearchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The figures' files take most of a report's time, and are as those of one placement.
    monkeypatch.setattr(Panel, "svg", lambda self, spec: "<svg/>")
    page = Page(write_report(placed_result, tmp_path, {}).read_text("utf-8"))
    assert "counts the ranks of block that the adapter's parameters are worth" in page.text
    assert "in ranks of block" in page.text
    assert "placements" in [a["id"] for tag, a in page.elements if tag == "section"]
    assert page.figures() == set(page.specs())
