"""The report: what its files hold, whom its figures show, and what it never does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest

from pmlray.config.secrets import without_credentials
from pmlray.law import LawSummary
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.figures.law import law_panels
from pmlray.study.report.figures.runs import chosen_runs, heat_panels
from pmlray.study.report.figures.search import order_panels
from pmlray.study.report.headline import headline
from pmlray.study.report.search_report import report_json, write_report
from pmlray.study.report.tables import number, pairs_table
from tests.unit.study.conftest import MakeResult, Page

ALL_FIGURES = {
    "recall-by-rank",
    *("delta-by-length", "delta-by-rank", "law-surface", "predicted-measured", "residuals"),
    *("residuals-by-rank", "residuals-by-prediction", "residuals-by-sequence"),
    *("token-recall-by-loss", "exact-recall-by-loss", "stored-bits", "bits-per-param"),
    *("heat-final-loss", "heat-token-recall", "heat-exact-recall"),
    *("token-p-1", "token-p-2", "token-p-3", "token-p-4", "order"),
    *("rank-exponent-by-round", "len-exponent-by-round", "relative-interval-by-round"),
    *("cost-by-round", "cost-by-length", "memft-exact", "memft-prefix", "memft-token"),
    *("stubborn-tokens", "memft-difference"),
}
LAW_FIGURES = {
    *("predicted-measured", "residuals", "rank-exponent-by-round", "len-exponent-by-round"),
    *("residuals-by-rank", "residuals-by-prediction", "residuals-by-sequence"),
    *("relative-interval-by-round", "law-surface"),
}
FACTS = {
    "wall_seconds": 312.5,
    "training_share": 0.71,
    "tracking_uri": "http://ray:hunter2@mlflow:5000",
    "store": Path("/somewhere/store"),
    "versions": {"pmlray": "0.1.0"},
    "machine": "a <i>machine</i>",
}


def rows_of(spec: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The rows of every data set that a specification draws."""
    for part in (spec, *spec.get("layer", [])):
        data = part.get("data")
        if data:
            yield data["values"] if "values" in data else spec["datasets"][data["name"]]


@pytest.fixture(scope="module")
def folder(result: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(result, folder, FACTS) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def law_of(result: SearchResult) -> LawSummary:
    assert result.law is not None
    return result.law


def test_loads_nothing_from_anywhere(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert not re.match(r"(https?:)?//|\.|/", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"@import|url\(", page.styles)
    assert not re.search(r'"url"\s*:', page.scripts["specs"] + page.scripts["data"])
    policies = [
        a["content"] or ""
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1 and "default-src 'none'" in policies[0]
    assert not re.search(r"https?:|connect-src|\*", policies[0])


def test_has_the_drawing_code_once(page: Page) -> None:
    bundles = [code for code in page.scripts.values() if "window.vegaEmbed=" in code]
    assert len(bundles) == 1 and len(bundles[0]) > 300_000


def test_every_figure_has_its_place_its_rows_and_its_svg(page: Page, folder: Path) -> None:
    specs = page.specs()
    assert page.figures() == set(specs) == ALL_FIGURES
    for spec in specs.values():
        # Held against Vega-Lite's schema here, as the report itself is not.
        alt.TopLevelSpec.validate(spec)
    for key, spec in specs.items():
        sets = list(rows_of(spec))
        assert sets and all(len(rows) > 0 for rows in sets), key
        assert spec["width"] == "container", key
        assert "tooltip" in json.dumps(spec), key
        svg = ElementTree.parse(folder / "figures" / f"{key}.svg").getroot()
        assert svg.tag.endswith("svg")
        assert len(list(svg.iter("{http://www.w3.org/2000/svg}path"))) > 5, key
    assert {p.stem for p in (folder / "figures").glob("*.svg")} == ALL_FIGURES


def test_is_accessible_in_its_structure(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements
    assert tags.count("h1") == 1 and tags.count("main") == 1 and tags.count("nav") == 1
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for tag, attributes in page.elements:
        if "data-figure" in attributes:
            assert attributes["role"] == "img" and len(attributes["aria-label"] or "") > 30
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "a":
            assert (attributes["href"] or "").removeprefix("#") in ids


def test_sections_come_in_order(page: Page) -> None:
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == [
        *("answer", "law", "numbers", "recall", "recall-law", "memft", "capacity"),
        *("errors", "residual-structure", "tokens", "stubborn", "search", "cost"),
        *("observations", "reproduce", "checklist"),
    ]
    # Every one of them is in the contents.
    links = [a["href"] for tag, a in page.elements if tag == "a" and a.get("class") != "skip"]
    assert links == [f"#{section}" for section in sections]


def test_headline_says_the_law_and_what_it_cost(page: Page, result: SearchResult) -> None:
    law = law_of(result)
    low, high = law.intervals["rank_exponent"]
    assert f"90%: {number(low, 3)} to {number(high, 3)}" in page.text
    formulas = [a["aria-label"] or "" for _, a in page.elements if a.get("role") == "math"]
    assert len(formulas) == 1
    assert f"r^{law.fit.law.rank_exponent:.3g}" in formulas[0]
    assert f"z / {law.fit.law.to_json()['base_loss']:.3g})" in formulas[0]
    assert law.heldout_mape is not None and law.extrapolation_mape is not None
    assert f"off by {100 * law.heldout_mape:.3g}% on average" in page.text
    said = headline(result)
    assert said is not None and said.sentences[0] == law.headline
    assert f"{100 * law.extrapolation_mape:.3g}%" in law.headline and law.headline in page.text
    spent = result.gpu_seconds
    assert f"{number(spent.spent)} of 1,200 gpu_seconds" in page.text
    assert "rests on 18 observations" in page.text and "CONVERGED" in page.text


def test_the_page_holds_the_checklist(page: Page, folder: Path, result: SearchResult) -> None:
    for name, text in law_of(result).checklist.items():
        assert name in page.text and text in page.text
    stored = json.loads((folder / "report.json").read_text())
    assert stored["law"]["checklist"] == dict(law_of(result).checklist)
    assert stored["law"]["headline"] == law_of(result).headline


def test_power_form_is_written_without_a_ceiling(make_result: MakeResult) -> None:
    said = headline(make_result(memft=False, law={"n_bootstrap": 30, "forms": ("power",)}))
    assert said is not None and said.formula.form == "power"
    assert said.formula.spoken.startswith("delta_loss = ") and "z" not in said.formula.spoken
    assert {p.name for p in said.parameters} == {
        *("coef", "rank_exponent", "len_exponent", "offset"),
    }


def test_curves_and_bands_are_those_of_the_law(result: SearchResult) -> None:
    law = law_of(result)
    observed = {round(o.delta_loss, 5) for o in result.law_observations}
    for panel in law_panels(result):
        spec = panel.spec()
        curves = next(rows for rows in rows_of(spec) if "low" in rows[0])
        r, length, t = (
            [float(row[k]) for row in curves] for k in ("lora_rank", "seq_len", "train_steps")
        )
        low, high = law.average_samples.interval(r, length, t)
        drawn = law.average_samples.predict(r, length, t)
        assert [row["delta_loss"] for row in curves] == pytest.approx(
            np.median(drawn, axis=0), abs=1e-4
        )
        assert [row["low"] for row in curves] == pytest.approx(low, abs=1e-4)
        assert [row["high"] for row in curves] == pytest.approx(high, abs=1e-4)
        points = next(rows for rows in rows_of(spec) if "token_recall" in rows[0])
        assert {row["delta_loss"] for row in points} == observed
    by_length = next(r for r in rows_of(law_panels(result)[0].spec()) if "low" in r[0])
    assert max(row["seq_len"] for row in by_length) == pytest.approx(256)  # a target's length


def test_heat_maps_average_the_replicates_of_plain_sft(result: SearchResult) -> None:
    runs: dict[tuple[int, int], list[float]] = {}
    for o in result.observations:
        if o.method == "sft":
            runs.setdefault((o.point.lora_rank, o.point.seq_len), []).append(o.final_loss)
    expected = {cell: sum(losses) / len(losses) for cell, losses in runs.items()}
    assert max(len(losses) for losses in runs.values()) > 1
    rows = next(rows_of(heat_panels(result)[0].spec()))
    drawn = {(row["lora_rank"], row["seq_len"]): row["final_loss"] for row in rows}
    assert drawn == pytest.approx(expected, abs=1e-5)


def test_order_numbers_every_run_by_round(result: SearchResult) -> None:
    rows = next(rows_of(order_panels(result)[0].spec()))
    assert [row["order"] for row in rows] == list(range(1, 19))
    assert [row["round"] for row in rows] == sorted(o.round for o in result.law_observations)


def test_chosen_runs_are_the_extremes_and_the_threshold(result: SearchResult) -> None:
    plain = sorted(o.final_loss for o in result.observations if o.method == "sft")
    losses = [o.final_loss for _, o in chosen_runs(result)]
    assert losses[0] == plain[0] and losses[-1] == plain[-1]
    distance = sorted(abs(x - math.log(2)) for x in plain[1:-1])
    assert sorted(abs(x - math.log(2)) for x in losses[1:-1]) == distance[:2]


def test_json_agrees_with_the_result(folder: Path, result: SearchResult) -> None:
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for key, value in result.to_json().items():
        assert stored[key] == json.loads(json.dumps(value)), key
    assert [o["run_key"] for o in stored["observations"]] == [
        o.run_key for o in result.observations
    ]
    first, o = stored["observations"][0], result.observations[0]
    assert first["point"] == {"lora_rank": 1, "seq_len": 32, "train_steps": 200}
    assert (first["delta_loss"], first["gpu_seconds"]) == (o.delta_loss, o.gpu_seconds)
    assert first["recall"]["exact"] == o.recall.exact
    assert [s["round"] for s in stored["snapshots"]] == [s.round for s in result.snapshots]
    assert stored["snapshots"][-1]["law"]["coef"] == law_of(result).fit.law.to_json()["coef"]
    assert stored["facts"]["wall_seconds"] == 312.5


def test_json_has_no_numbers_that_json_lacks(result: SearchResult) -> None:
    stored = report_json(result, {"training_share": math.nan, "wall_seconds": math.inf})
    assert stored["facts"] == {"training_share": None, "wall_seconds": None}
    json.dumps(stored, allow_nan=False)


def test_credentials_stay_out(folder: Path) -> None:
    for name in ("report.html", "report.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "hunter2" not in text and "http://mlflow:5000" in text
    assert without_credentials({"a": ["s3://k:s@bucket/x"]}) == {"a": ["s3://bucket/x"]}


def test_every_run_failure_and_pair_is_in_a_table(page: Page, result: SearchResult) -> None:
    for o in result.observations:
        assert o.run_key in page.text
    assert "f00" in page.text
    table = pairs_table(result.pairs)
    assert len(result.pairs) == 8
    for name, method in (("exact", "sft"), ("prefix", "memft"), ("token", "memft")):
        column = table.columns.index(f"{name} {'SFT' if method == 'sft' else 'MemFT'}")
        assert [row[column] for row in table.rows] == [
            getattr(getattr(pair, method).recall, name) for pair in result.pairs
        ]
    dots = next(rows for rows in rows_of(page.specs()["memft-token"]) if "recall" in rows[0])
    assert len(dots) == 16
    assert {d["method"] for d in dots} == {"SFT", "MemFT-OT", "MemFT-SW"}


def test_a_negative_offset_is_subtracted(result: SearchResult) -> None:
    summary = law_of(result)
    params = summary.fit.law.params
    params[summary.fit.law.param_names.index("offset")] = -0.25
    fit = replace(summary.fit, law=summary.fit.law.with_params(params))
    last = replace(result.snapshots[-1], law=replace(summary, fit=fit))
    said = headline(replace(result, snapshots=(last,)))
    assert said is not None and said.formula.spoken.endswith(" − 0.25")
