"""Whole searches that look their measurements up in a table, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pmlray.config.prepared_search import prepare_search
from pmlray.study.search.replay_table import read_table, write_table
from tests.integration.conftest import pmlray
from tests.searches import exhaustive
from tests.unit.conftest import SEARCH


@pytest.fixture
def search_file(tmp_path: Path) -> Path:
    path = tmp_path / "unit.yaml"
    path.write_text(SEARCH)
    return path


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all searches here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'ml.db'}"


def test_a_replayed_search_needs_no_ray(
    search_file: Path, tmp_path: Path, tracking_uri: str
) -> None:
    overrides = ("memft=null", "budget={gpu_seconds: 60}", "law.n_bootstrap=20")
    search = prepare_search(search_file, overrides)
    table = tmp_path / "table.csv"
    write_table(table, exhaustive(search, tmp_path / "grid").observations(), ["made up"])
    options = [part for override in overrides for part in ("--set", override)]
    code, out, err = pmlray(
        "search", str(search_file), *options, "--replay", str(table),
        "--store", str(tmp_path / "store"), "--tracking-uri", tracking_uri, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["n_observations"] > search.spec.design.n_initial and found["n_failed"] == 0
    assert 0 < found["gpu_seconds"]["law"] <= 60
    assert Path(found["report"]).is_file() and not (tmp_path / "store" / "ray").exists()
    again = tmp_path / "again.csv"
    code, out, err = pmlray(
        "table", str(tmp_path / "store"), str(again), "--note", "replayed", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["rows"] == found["n_observations"]
    measured, copied = read_table(table), read_table(again)
    assert copied.provenance[-1] == "replayed" and search.spec.search_id in copied.provenance[0]
    assert all(measured.rows[run] == row for run, row in copied.rows.items())


def test_a_rival_rule_is_one_line_away(
    search_file: Path, tmp_path: Path, tracking_uri: str
) -> None:
    """One of Optuna's own samplers in the place of pmlray's."""
    overrides = ("memft=null", "budget={gpu_seconds: 60}", "law.n_bootstrap=20")
    search = prepare_search(search_file, overrides)
    table, store = tmp_path / "table.csv", tmp_path / "store"
    write_table(table, exhaustive(search, tmp_path / "grid").observations(), ["made up"])
    options = [p for o in (*overrides, "design.acquisition=tpe") for p in ("--set", o)]
    found = run_json(
        "search", str(search_file), *options, "--replay", str(table), "--store", str(store),
        "--tracking-uri", tracking_uri,
    )  # fmt: skip
    assert found["n_observations"] >= search.spec.design.n_initial
    assert 0 < found["gpu_seconds"]["law"] <= 60
    assert json.loads((store / "search.json").read_text())["design"]["acquisition"] == "tpe"


def run_json(*arguments: str) -> dict[str, Any]:
    code, out, err = pmlray(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_stores_fit_is_its_searchs_law(
    search_file: Path, tmp_path: Path, tracking_uri: str
) -> None:
    overrides = (
        "memft=null",
        "budget={gpu_seconds: 60}",
        "law={forms: [exponential_ceiling], loss: huber, noise: by_value, saturated: censor}",
    )
    search = prepare_search(search_file, overrides)
    table, store = tmp_path / "table.csv", tmp_path / "store"
    write_table(table, exhaustive(search, tmp_path / "grid").observations(), [])
    options = [part for override in overrides for part in ("--set", override)]
    found = run_json(
        "search", str(search_file), *options, "--replay", str(table), "--store", str(store),
        "--tracking-uri", tracking_uri,
    )  # fmt: skip
    fitted = run_json("fit", str(store))
    assert fitted["form"] == found["law"]["form"] == "exponential_ceiling"
    assert fitted["rank_exponent"] == pytest.approx(found["law"]["rank_exponent"])
    counted = fitted["checklist"]
    # The order of the points leaves the last digits open.
    assert {**counted, "parameters": ""} == {**found["law"]["checklist"], "parameters": ""}
    assert "(Huber)" in counted["loss"] and "Tobit" in counted["filter"]
    assert f"is {fitted['sigma']:.3g} of its loss reduction" in counted["noise"]
    plain = run_json("fit", str(store), "--loss", "gaussian", "--saturated", "filter")
    assert "Huber" not in plain["checklist"]["loss"]
    assert "Tobit" not in plain["checklist"]["filter"]
    assert run_json("fit", str(store), "--form", "ceiling")["form"] == "ceiling"
    # The report of the same search, as a laptop gets it.
    search_id = found["search_id"]
    fetched = run_json(
        "report", search_id, "--from", tracking_uri, "--out", str(tmp_path / "fetched")
    )
    assert fetched["law"] == found["law"]
    assert Path(fetched["report"]).read_text() == (store / "report" / "report.html").read_text()
    store.rename(tmp_path / search_id)
    again = run_json("report", search_id, "--from", str(tmp_path))
    assert again["law"] == found["law"] and again["search_id"] == search_id
