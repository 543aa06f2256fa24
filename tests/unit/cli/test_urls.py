"""URLs where results are to be kept, and addresses that MLflow does not take: refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pmlray.cli import app
from pmlray.errors import SpecError

runner = CliRunner()
ROOT = Path(__file__).parents[3]
COMPARISON = str(ROOT / "searches" / "comparisons" / "smoke.yaml")
TABLE = ROOT / "searches" / "tables" / "smollm2_phonebook"
URL = "s3://bucket/x"
REPLAY = ("search", f"{TABLE}.yaml", "--replay", f"{TABLE}.csv")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with records in it."""
    rows = ({"query": f"{i}:", "target": f"{i} is {i * i}"} for i in range(40))
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def refused(here: Path, arguments: tuple[str, ...]) -> str:
    before = {path.name for path in here.iterdir()}
    done: Result = runner.invoke(app, list(arguments))
    assert isinstance(done.exception, SpecError), (done.output, done.exception)
    assert {path.name for path in here.iterdir()} == before
    return str(done.exception)


SIZE = ("size", "--records", "facts.jsonl", "--model", "tiny-random-llama")


@pytest.mark.parametrize(
    "arguments",
    [(*REPLAY, "--store", URL), ("compare", COMPARISON, "--store", URL), (*SIZE, "--out", URL),
     (*SIZE, "--out", URL, "--dry-run"), ("report", URL), ("watch", URL), ("tokens", URL),
     ("submit", f"{TABLE}.yaml", "--address", "http://127.0.0.1:1", "--store", URL),
     ("report", "x", "--from", "http://127.0.0.1:1", "--out", URL)],
)  # fmt: skip
def test_a_url_is_no_place_for_results(here: Path, arguments: tuple[str, ...]) -> None:
    assert "s3://bucket/x is no folder" in refused(here, arguments)


@pytest.mark.parametrize("arguments", [REPLAY, ("compare", COMPARISON), SIZE])
def test_nor_is_one_in_the_environment(
    here: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_STORE", URL)
    assert "PMLRAY_STORE: s3://bucket/x" in refused(here, arguments)
    doctor = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)
    (store,) = (check for check in doctor["checks"] if check["name"] == "store")
    assert store["state"] == "fail" and "s3://bucket/x is no folder" in store["detail"]


@pytest.mark.parametrize("arguments", [REPLAY, ("compare", COMPARISON), SIZE])
def test_an_address_that_mlflow_does_not_take(
    here: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = "--tracking-uri: MLflow's address is foo://; supported are"
    assert option in refused(here, (*arguments, "--tracking-uri", "foo://bar"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    assert "MLFLOW_TRACKING_URI: MLflow's address is foo://" in refused(here, arguments)
