"""`pmlray tokens`, as a user runs it, on a small search that was really trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.api.stores import open_store
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.cli.token_commands import describe_tokens
from pmlray.config.prepared_search import prepare_search
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.pull import pull_model
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import DataError, StoreError
from pmlray.types import Pack
from tests.unit.cli.test_commands import run_json
from tests.unit.conftest import SEARCH

runner = CliRunner()
OVERRIDES = (
    "task={kind: phonebook, prompt_format: plain}",
    "space={lora_rank: [1, 4], seq_len: [20, 40], train_steps: [30]}",
    "design.n_initial=2",
    "memft=null",
    "evaluate={control_tokens: 0, generate_max_tokens: 0}",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    file = folder / "unit.yaml"
    file.write_text(SEARCH)
    pull_model("tiny-random-llama")
    search = prepare_search(file, OVERRIDES)
    kept = FileStore(folder / "store")
    (kept.folder / "search.json").write_text(search.spec.model_dump_json())
    runs = tuple(search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points())
    measure_pack(search, Pack(0, runs), kept, kept.adapters, TorchStepper, {})
    return kept.folder


def test_reports_the_search(store: Path) -> None:
    found = run_json("tokens", str(store))
    assert (found["n_runs"], found["n_families"], found["n_tokens"]) == (4, 4, 40)
    assert sum(found["verdicts"].values()) == 40 and found["note"] is None
    first = found["tokens"][0]
    assert first["token"]["text"].isdigit() and 0 < first["token"]["base_p"] < 1
    assert first["token"]["norm"] > 0 and first["run_p"] is None and found["moved"] is None
    shown = describe_tokens(found)
    assert repr(first["token"]["text"]) in shown and "family-wise" in shown


def test_moves_one_run_without_touching_its_store(store: Path) -> None:
    before = {path: path.read_bytes() for path in store.glob("*/*.json")}
    run = FileStore(store).observations()[0]
    found = run_json("tokens", str(store), run.run_key, "--layer", "0")
    moved = found["moved"]
    assert moved["layer"] == 0 and moved["store"] == str(store / "layers" / "0")
    [kept] = FileStore(store / "layers" / "0").observations()
    assert kept.run_key == moved["run_key"] and kept.point == run.point
    assert len(found["tokens"]) == found["run"]["n_failed"] == sum(p <= 0.5 for p in run.token_p)
    for token in found["tokens"]:
        assert token["run_p"] == run.token_p[token["position"]] <= 0.5
        assert token["moved_p"] == kept.token_p[token["position"]]
        assert token["cured"] == (token["moved_p"] > 0.5)
    assert {path: path.read_bytes() for path in store.glob("*/*.json")} == before
    # The other layer's store is a search's own.
    assert open_store(store / "layers" / "0")[0].probe.layer == 0
    shown = describe_tokens(found)
    assert "layer 0 cures" in shown and "moved p" in shown


def test_counts_without_torch(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pmlray.engine.token_report", None)
    found = run_json("tokens", str(store))
    assert "pip install -e '.[train]' in your clone" in found["note"]
    assert found["tokens"][0]["token"] is None and found["ids"] == []
    shown = runner.invoke(app, ["tokens", str(store)], catch_exceptions=False)
    assert shown.exit_code == 0 and "position" in shown.stdout


def test_what_cannot_be_told_is_refused(store: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str | BaseException | None:
        result = runner.invoke(app, ["tokens", *arguments])
        assert result.exit_code != 0
        return result.exception if result.exit_code == 1 else result.output

    assert "RUN_KEY" in str(refused(str(store), "--layer", "0"))
    assert "no observation has the key" in str(refused(str(store), "nothing"))
    assert isinstance(refused(str(tmp_path)), StoreError)
    (tmp_path / "search.json").write_text((store / "search.json").read_text())
    assert isinstance(refused(str(tmp_path)), DataError)
