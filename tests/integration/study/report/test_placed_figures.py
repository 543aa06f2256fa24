"""The figures of a search over three placements, against the law it was drawn from."""

from __future__ import annotations

import json
import math
from typing import Any

import altair as alt
import numpy as np
import pytest

from pmlray.law import Placement
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import capacities, capacity_text
from pmlray.study.report.figures.run_rows import residual_rows
from pmlray.study.report.figures.runs import token_panels
from pmlray.study.report.placements import placement_rows
from pmlray.types import Observation
from tests.integration.study.report.test_search_report import law_of, rows_of
from tests.unit.study.placed_search import (
    PER_RANK,
    PLACES,
    STEPS,
    WORTHS,
)

NAMES = tuple(PLACES)
Specs = dict[str, dict[str, Any]]
VALIDATED = (
    *("placement-worth", "placement-bits", "placement-collapse-192", "delta-by-length-block"),
    *("law-surface-block", "predicted-measured", "residuals-by-params", "residuals-by-placement"),
    *("heat-final-loss", "order", "cost-by-length", "token-recall-by-loss", "stored-bits"),
)


def runs_at(result: SearchResult, name: str) -> list[Observation]:
    return [o for o in result.law_observations if o.point.placement == name]


def place_of(result: SearchResult, name: str) -> Placement:
    return next(p for p in law_of(result).unseen.data.placements if p.name == name)


def rows_with(spec: dict[str, Any], *fields: str) -> list[dict[str, Any]]:
    return next(rows for rows in rows_of(spec) if set(fields) <= set(rows[0]))


def test_every_figure_has_rows_and_those_of_placements_are_valid(
    placed_specs: Specs,
) -> None:
    for name in NAMES:
        assert placed_specs.keys() >= {
            f"{stem}-{name}" for stem in ("delta-by-length", "delta-by-rank", "law-surface")
        }
    assert not {"delta-by-length", "delta-by-rank", "law-surface", "residuals-by-rank"} & {
        *placed_specs
    }
    for key, spec in placed_specs.items():
        assert all(len(rows) > 0 for rows in rows_of(spec)), key
        assert "tooltip" in json.dumps(spec), key
    # Held against Vega-Lite's schema, which takes 0.1 s a figure: all that placements change.
    for key in VALIDATED:
        alt.TopLevelSpec.validate(placed_specs[key])


def test_no_figure_with_a_rank_mixes_placements(placed_specs: Specs) -> None:
    """Every row of a run or a cell names its placement, or its figure is of one alone."""
    for key, spec in placed_specs.items():
        for rows in rows_of(spec):
            alone = any(key.endswith(f"-{name}") for name in NAMES)
            if "lora_rank" in rows[0] and not alone:
                assert all(row["placement"] in NAMES for row in rows), key


def test_curves_are_the_laws_at_the_placement(
    placed_result: SearchResult, placed_specs: Specs
) -> None:
    samples = law_of(placed_result).average_samples
    for name in NAMES:
        spec = placed_specs[f"delta-by-length-{name}"]
        curves = rows_with(spec, "low", "high")
        r, length = (np.array([float(row[k]) for row in curves]) for k in ("lora_rank", "seq_len"))
        told = samples.at(place_of(placed_result, name)).predict(r, length, STEPS)
        assert [row["delta_loss"] for row in curves] == pytest.approx(
            np.median(told, axis=0), abs=1e-4
        )
        dots = rows_with(spec, "token_recall")
        assert sorted(row["delta_loss"] for row in dots) == sorted(
            round(o.delta_loss, 5) for o in runs_at(placed_result, name)
        )


def test_surfaces_and_boundaries_are_in_ranks_of_their_placement(
    placed_result: SearchResult, placed_specs: Specs
) -> None:
    law = law_of(placed_result)
    for name in NAMES:
        place, spec = place_of(placed_result, name), placed_specs[f"law-surface-{name}"]
        cells = rows_with(spec, "below")
        r, length = (np.array([row[k] for row in cells]) for k in ("lora_rank", "seq_len"))
        drawn = [row["delta_loss"] for row in cells]
        assert law.average.predict(r, length, STEPS, place) == pytest.approx(drawn, rel=2e-3)
        line = [row for row in rows_with(spec, "low", "high") if row["lora_rank"] is not None]
        for row in line[::5]:
            told = law.average_samples.at(place).predict(row["lora_rank"], row["seq_len"], STEPS)
            assert np.sort(told)[told.size - 1 - told.size // 2] == pytest.approx(
                10.8 - math.log(2), abs=5e-3
            )


def test_worths_are_those_drawn(placed_result: SearchResult, placed_specs: Specs) -> None:
    rows = {r["placement"]: r for r in rows_with(placed_specs["placement-worth"], "worth")}
    assert list(rows) == list(NAMES)
    for name in NAMES:
        assert rows[name]["low"] <= WORTHS[name] <= rows[name]["high"]
        assert rows[name]["n_runs"] == len(runs_at(placed_result, name))
    assert (rows["block"]["low"], rows["block"]["high"]) == (1, 1)


def test_the_law_collapses_on_effective_parameters(
    placed_result: SearchResult, placed_specs: Specs
) -> None:
    law = law_of(placed_result)
    worths = {row.name: row.worth for row in placement_rows(placed_result)}
    shown = 0
    for length in (48, 96, 192):
        spec = placed_specs[f"placement-collapse-{length}"]
        dots = rows_with(spec, "placement")
        shown += len(dots)
        for row in dots:
            assert row["seq_len"] == length
            worth = worths[row["placement"]]
            assert worth is not None
            own = worth.value * PER_RANK[row["placement"]] * row["lora_rank"]
            assert row["effective_params"] == pytest.approx(own, rel=1e-5)
        curve = rows_with(spec, "low", "high")
        params = np.array([row["effective_params"] for row in curve])
        told = law.average_samples.predict(params / PER_RANK["block"], length, STEPS)
        middle = np.median(told, axis=0)
        assert [row["delta_loss"] for row in curve] == pytest.approx(middle, abs=1e-3)
        # The runs of all placements lie about the one curve: noise of 0.15 nats.
        at = np.interp([math.log(r["effective_params"]) for r in dots], np.log(params), middle)
        off = np.array([row["delta_loss"] for row in dots]) - at
        assert np.sqrt(np.mean(off**2)) < 0.3
        encoding = spec["layer"][-1]["encoding"]
        for channel in ("color", "shape"):
            assert encoding[channel]["field"] == "placement"
            assert encoding[channel]["scale"]["domain"] == list(NAMES)
        assert len(set(encoding["shape"]["scale"]["range"])) == 3
    assert shown == len(placed_result.law_observations)


def test_bits_lie_over_parameters(placed_result: SearchResult, placed_specs: Specs) -> None:
    rows = rows_with(placed_specs["placement-bits"], "bits_per_param")
    for row, o in zip(rows, placed_result.law_observations, strict=True):
        name = str(o.point.placement)
        n_params = PER_RANK[name] * o.point.lora_rank
        bits = o.supervised_tokens * o.delta_loss / math.log(2) / n_params
        assert (row["placement"], row["n_params"]) == (name, n_params)
        assert row["bits_per_param"] == pytest.approx(bits, abs=1e-5)
    assert "at rank 1 at attention" in capacity_text(capacities(placed_result))


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


def test_cells_of_the_same_rank_stay_apart(
    placed_result: SearchResult, placed_specs: Specs
) -> None:
    cells = rows_with(placed_specs["heat-final-loss"], "n_runs")
    runs: dict[tuple[Any, ...], list[float]] = {}
    for o in placed_result.observations:
        if o.method == "sft":
            key = (o.point.placement, o.point.lora_rank, o.point.seq_len)
            runs.setdefault(key, []).append(o.final_loss)
    drawn = {(r["placement"], r["lora_rank"], r["seq_len"]): r["final_loss"] for r in cells}
    assert drawn == pytest.approx({k: np.mean(v) for k, v in runs.items()}, abs=1e-5)
    order = rows_with(placed_specs["order"], "order")
    assert {row["at_rank"] for row in order} == {
        f"r{o.point.lora_rank} {o.point.placement}" for o in placed_result.law_observations
    }
    assert {row["visit"] for row in order} == {0}  # No cell has two runs.
    costs = rows_with(placed_specs["cost-by-length"], "supervised_tokens")
    assert {row["placement"] for row in costs} == {*NAMES}


def test_titles_and_labels_name_the_placement(
    placed_result: SearchResult, placed_specs: Specs
) -> None:
    assert all(" at " in panel.title for panel in token_panels(placed_result))
    pairs = rows_with(placed_specs["memft-exact"], "recall")
    assert {row["pair"] for row in pairs} == {"1: r2 l96 block", "2: r2 l96 linear"}
