"""A comparison of methods through real Ray, DeepSpeed and MLflow, on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import ROOT, pmlray
from tests.mlflow_runs import all_runs

SPEC = ROOT / "searches" / "comparisons" / "smoke.yaml"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_compares_and_continues(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = ("compare", str(SPEC), "--store", str(store), "--json")
    code, out, err = pmlray(*command)
    assert code == 0, err
    found = json.loads(out)
    assert [r["method"] for r in found["results"]] == 2 * ["sft", "memft_ot", "memft_rd"]
    assert all(r["n_runs"] == 2 for r in found["results"])
    assert all("prose_delta_loss" in r["means"] for r in found["results"])
    assert Path(found["report"]).is_file()
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    runs = all_runs(client)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(parents) == 1 and len(children) == 24
    names = {a.path for a in client.list_artifacts(parents[0].info.run_id)}
    assert {f"comparison.{kind}" for kind in ("html", "csv", "json", "svg", "png")} <= names
    assert {r.data.tags["pmlray.method"] for r in children} == {"sft", "memft_ot", "memft_rd"}
    assert all("exact_recall" in r.data.metrics for r in children)
    # Everything is measured: the same command only reports again. Nobody answers at this address.
    code, out, err = pmlray(*command, RAY_ADDRESS="127.0.0.1:1")
    assert code == 0, err
    assert json.loads(out)["results"] == found["results"]
    code, out, err = pmlray("watch", str(store))
    assert code == 0 and "the comparison has ended" in err, err
    assert "comparison: 24 of 24 runs done, 0 running, 0 failed" in err
    assert len([line for line in err.splitlines() if "  method " in line]) == 6
