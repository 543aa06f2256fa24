"""`from pmlray import ...`: the same work as the command line's, without its frameworks' weight."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import pmlray
from pmlray import Search, SearchSpec, fit_law, law_data, read_law_data, size
from pmlray.api.search_run import SearchRun
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config import load_search
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.space_spec import Space
from pmlray.config.stored_files import COMPARISON_FILE, SEARCH_FILE
from pmlray.engine import calibrate_apart
from pmlray.errors import INSTALL_NOTEBOOK, ModelError, SpecError, StoreError
from pmlray.law import LawSummary
from pmlray.live_packs import Calibration
from pmlray.study.search.progress import Progress
from pmlray.types import OBSERVATION_SCHEMA, DesignPoint, Pack
from tests.fakes import TRUE_LAW, SyntheticRunner

MakeSearch = Callable[..., PreparedSearch]


def test_every_public_name_is_there() -> None:
    assert {"Search", "fit_law", "LawSampler", "size"} <= set(pmlray.__all__) <= set(dir(pmlray))
    for name in pmlray.__all__:
        assert getattr(pmlray, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Serach'"):
        pmlray.Serach  # noqa: B018


def test_the_plan_is_that_of_the_command_line(search_file: Path, tmp_path: Path) -> None:
    plan = Search.load(search_file, store=tmp_path / "store").plan()
    shown = CliRunner().invoke(app, ["plan", str(search_file), "--json"])
    assert json.loads(shown.stdout) == plan.to_json()
    dry = CliRunner().invoke(app, ["search", str(search_file), "--dry-run", "--json"])
    assert json.loads(dry.stdout).items() >= plan.to_json().items()
    assert not (tmp_path / "store").exists()


def test_a_spec_made_in_python_is_the_file_s_search(search_file: Path, tmp_path: Path) -> None:
    from_file = Search.load(search_file, store=tmp_path, overrides=["name=other"])
    spec = load_search(search_file, ["name=other"])
    from_spec = Search.load(spec, store=tmp_path)
    assert from_spec == from_file and from_spec.search_id.startswith("other-")
    with pytest.raises(SpecError, match="layers 0 to 3"):
        Search.load(load_search(search_file, ["probe.layer=7"]))


def test_a_run_leaves_a_program_its_own_signals(
    search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_search(run: SearchRun, announce: Callable[[Progress], None]) -> dict[str, Any]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        return {"store": run.store, "replay": run.replay, "announce": announce}

    monkeypatch.setattr("pmlray.api.search_run.run_search", run_search)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    said: list[Progress] = []
    search = Search.load(search_file, store=tmp_path / "store")
    found = search.run(replay="table.csv", announce=said.append)
    assert found == {
        "store": tmp_path / "store", "replay": Path("table.csv"), "announce": said.append,
    }  # fmt: skip
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_law_and_observations_come_from_the_store(search_file: Path, tmp_path: Path) -> None:
    search = Search.load(search_file, store=tmp_path / "store")
    with pytest.raises(StoreError, match="is no store of a search"):
        search.observations()
    store = FileStore(search.store)
    (search.store / SEARCH_FILE).write_text(search.spec.model_dump_json())
    assert search.observations() == () and search.law() is None
    prepared = search.prepared
    runs = tuple(
        prepared.plan_run(point, "sft", sequence, 0, "law")
        for point in prepared.spec.space.points()
        for sequence in (0, 1)
    )
    done = SyntheticRunner(store, noise=0.0).run(Pack(0, runs))
    assert search.observations() == done.observations
    law = search.law()
    assert law is not None
    (target,) = law.targets
    at = (target.point.lora_rank, target.point.seq_len, target.point.train_steps)
    assert target.delta_loss == pytest.approx(float(TRUE_LAW.predict(*at)), rel=0.02)
    fit = fit_law(law_data(done.observations), "ceiling")
    assert isinstance(fit, LawSummary)
    low, high = fit.intervals["rank_exponent"]
    assert low < TRUE_LAW.rank_exponent < high < low + 0.5


@pytest.fixture
def measured(search_file: Path, tmp_path: Path) -> Search:
    """A search of which every run is measured, as its file gives it."""
    search = Search.load(search_file, store=tmp_path / "store")
    store = FileStore(search.store)
    (search.store / SEARCH_FILE).write_text(search.spec.model_dump_json())
    points = search.spec.space.points()
    runs = [search.prepared.plan_run(p, "sft", s, 0, "law") for p in points for s in (0, 1)]
    SyntheticRunner(store, noise=0.0).run(Pack(0, tuple(runs)))
    return search


def test_a_study_is_opened_by_its_folder_alone(
    measured: Search, search_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Neither its file nor its model needs to be here.
    search_file.unlink()
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "empty"))
    before = sorted(measured.store.rglob("*"))
    found = Search.load(str(measured.store))
    assert found.search_id == measured.search_id and found.spec == measured.spec
    assert found.observations() == measured.observations()
    law, result = found.law(), found.result()
    assert law is not None and result.law is not None
    assert result.law.to_json() == law.to_json()
    assert law.predict(4, 64).median == pytest.approx(float(TRUE_LAW.predict(4, 64, 100)), rel=0.02)
    assert result.gpu_seconds.spent == sum(o.gpu_seconds for o in found.observations())
    assert sorted(measured.store.rglob("*")) == before
    for changes in (found.plan, found.run):
        with pytest.raises(SpecError, match=r"was opened to be read; Search\.load with"):
            changes()


@pytest.mark.parametrize(
    "given", [{"overrides": ["name=x"]}, {"store": "x"}, {"profile": None, "address": "auto"}]
)
def test_a_folder_takes_no_settings(measured: Search, given: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="is a folder of results, which is only read"):
        Search.load(measured.store, **given)


def test_a_folder_that_is_no_store_is_told_from_one(measured: Search, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreError, match=r"is no store of a search \(it has no search.json\)$"):
        Search.load(tmp_path / "other")
    (tmp_path / "other" / COMPARISON_FILE).write_text("{}")
    with pytest.raises(StoreError, match="it holds a comparison"):
        Search.load(tmp_path / "other")
    (tmp_path / "sized").mkdir()
    measured.store.rename(tmp_path / "sized" / "law")
    with pytest.raises(StoreError, match=r"the search of whose law is .*sized/law"):
        Search.load(tmp_path / "sized")
    assert Search.load(tmp_path / "sized" / "law").search_id == measured.search_id
    with pytest.raises(SpecError, match="there is no file"):
        Search.load(tmp_path / "nothing")


def test_a_store_of_a_newer_version_is_refused(measured: Search) -> None:
    stored = json.loads((measured.store / SEARCH_FILE).read_text())
    (measured.store / SEARCH_FILE).write_text(json.dumps(stored | {"of_tomorrow": 1}))
    with pytest.raises(StoreError, match="of another version of pmlray"):
        Search.load(measured.store)
    (measured.store / SEARCH_FILE).write_text(json.dumps(stored))
    file = next((measured.store / "observations").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": OBSERVATION_SCHEMA + 1}))
    with pytest.raises(StoreError, match="use the version that wrote it"):
        Search.load(measured.store).observations()


def test_a_frame_has_a_row_for_every_observation(measured: Search, tmp_path: Path) -> None:
    runs, frame = measured.observations(), measured.to_frame()
    assert list(frame.run_key) == [o.run_key for o in runs]
    assert list(frame.delta_loss) == [o.delta_loss for o in runs]
    assert list(frame.exact_recall) == [o.recall.exact for o in runs]
    assert list(frame.lora_rank) == [o.point.lora_rank for o in runs]
    assert frame.prose_delta_loss.isna().all() and "placement" not in frame
    frame.to_csv(tmp_path / "runs.csv")
    of_csv, of_runs = read_law_data(tmp_path / "runs.csv"), law_data(runs)
    assert sorted(of_csv.delta_loss) == pytest.approx(sorted(of_runs.delta_loss))
    assert len(of_csv) == len(runs) and len(set(of_csv.cluster)) == 2


def test_a_frame_of_nothing_has_the_same_columns(measured: Search, tmp_path: Path) -> None:
    empty = replace(measured, store=tmp_path / "empty")
    FileStore(empty.store)
    (empty.store / SEARCH_FILE).write_text(measured.spec.model_dump_json())
    assert list(empty.to_frame().columns) == list(measured.to_frame().columns)


def test_a_frame_without_pandas_says_what_to_install(
    measured: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SpecError, match=re.escape(INSTALL_NOTEBOOK)):
        measured.to_frame()


def test_a_notebook_shows_results_as_text(measured: Search, tmp_path: Path) -> None:
    assert repr(measured) == f"Search({measured.search_id}, store='{measured.store}')"
    found = measured._repr_html_()
    assert measured.search_id in found and "40 measured, 0 failed" in found
    assert "CONVERGED" in found and "CONVERGED" in repr(measured.result())
    assert "<th>answer</th>" in found and len(repr(measured.plan())) < 150
    evil = replace(measured, store=tmp_path / "<script>alert(1)</script>")
    assert "not started" in evil._repr_html_() and "<script>" not in evil._repr_html_()


def test_size_says_what_it_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tmp_path / "facts.jsonl"
    lines = [json.dumps({"query": f"{i}:", "target": f"{i} is {i * i}"}) for i in range(40)]
    records.write_text("\n".join(lines))
    timed = Calibration(((DesignPoint(8, 100, 50), 10),), 1.0, 1.5)
    monkeypatch.setattr(calibrate_apart, "time_steps_apart", lambda *given: timed)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = {"steps": 50, "placement": "mlp", "layer": 2, "dtype": "float32", "recall": 0.9}
    planned = size(records, "tiny-random-llama", out=tmp_path / "out", dry_run=True, **wanted)
    found = planned.to_json()
    options = [part for k, v in wanted.items() for part in (f"--{k}", str(v))]
    shown = CliRunner().invoke(
        app,
        ["size", "--records", str(records), "--model", "tiny-random-llama",
         "--out", str(tmp_path / "out"), "--dry-run", "--json", *options],
    )  # fmt: skip
    assert json.loads(shown.stdout) == found
    # 50 steps at a tenth of a second, and half of a step for each of 8 looks at 5 batches.
    assert found["predicted_training_gpu_seconds"] == pytest.approx(5.0 + 8 * 5 * 0.05)
    assert found["rates"] == "calibrated" and found["calibration_gpu_seconds"] == 1.5
    assert found["n_records"] == 40 and found["train_steps"] == 50 and found["recall"] == 0.9
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="pmlray models pull smollm2-135m"):
        size(records, "smollm2-135m", dry_run=True)


def test_a_spec_made_in_python_takes_lists(search_file: Path) -> None:
    of_file = load_search(search_file)
    parts: dict[str, Any] = yaml.safe_load(search_file.read_text())
    assert isinstance(parts["space"]["lora_rank"], list)
    assert SearchSpec(**parts) == of_file
    space = Space(lora_rank=[1, 2, 4], seq_len=[16, 32], train_steps=[100])  # type: ignore[arg-type]
    assert SearchSpec(**{**parts, "space": space}).space.lora_rank == (1, 2, 4)
