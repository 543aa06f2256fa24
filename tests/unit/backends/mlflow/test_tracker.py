"""MLflow on a real SQLite store: one child an observation, once, also after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pmlray.api.sync import sync_store
from pmlray.api.tracking import mirror_of
from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.node_load import NodeLoad
from pmlray.backends.mlflow.parents import StudyInMlflow
from pmlray.backends.mlflow.spooled_tracker import Replay, local_tracking_uri
from pmlray.backends.mlflow.tracker import MlflowTracker
from pmlray.backends.mlflow.watch import MlflowWatch
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_comparison
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import StoreError
from pmlray.study.run_names import run_name, run_tags
from pmlray.types import FailedRun
from tests.fakes import observe
from tests.mlflow_runs import all_runs

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creating the schema takes seconds; the tests share it under different search ids."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowTracker(local_tracking_uri(folder), study_of(folder, "warm-up"), {})
    shutil.copy(folder / "mlflow.db", folder / "another.db")
    return folder


def study_of(
    folder: Path, search_id: str, store_id: str = "a" * 12, earlier: str | None = None
) -> StudyInMlflow:
    return StudyInMlflow(search_id, "pmlray/unit", store_id, folder, earlier)


def children(client: MlflowClient, search_id: str) -> list[Run]:
    condition = f"tags.`pmlray.search_id` = '{search_id}' and tags.`pmlray.kind` = 'observation'"
    return all_runs(client, condition)


def test_mirrors_each_observation_once(
    database: Path, make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    points = search.spec.space.points()
    observations = [
        observe(search.plan_run(p, "sft", 0, 0, "law"), 0, i, 0.02, 1e-3)
        for i, p in enumerate(points[:3])
    ]
    observations[2] = replace(observations[2], control_delta_loss=None)
    text = {"content_hash": "abc123", "n_records": 4}
    text |= {"finished": "2026-01-02T03:04:05+00:00", "devices": 2}
    observations[0] = replace(observations[0], provenance=observations[0].provenance | text)
    adapter = tmp_path / "adapters" / observations[0].run_key / "adapter_config.json"
    adapter.parent.mkdir(parents=True)
    adapter.write_text("{}")
    uri = local_tracking_uri(database)
    spec = search.spec.model_dump(mode="json")
    study, adapters = study_of(database, search.spec.search_id), tmp_path / "adapters"
    tracker = MlflowTracker(uri, study, spec, adapters)
    tracker.observe(observations[:2])
    client = MlflowClient(uri)

    # A driver killed while it wrote a child leaves it RUNNING.
    half = client.create_run(
        children(client, search.spec.search_id)[0].info.experiment_id,
        tags={
            "mlflow.parentRunId": tracker._parent,
            "pmlray.search_id": search.spec.search_id,
            "pmlray.kind": "observation",
            "pmlray.run_key": observations[2].run_key,
        },
    )
    again = MlflowTracker(uri, study, spec, adapters)
    assert again.run_keys == {o.run_key for o in observations[:2]}
    again.observe(observations)
    again.law({"law/rank_exponent": 0.7}, 12.0)
    report = tmp_path / "report.json"
    report.write_text("{}")
    again.finish([report], "FINISHED")

    runs = children(client, search.spec.search_id)
    assert sorted(r.data.tags["pmlray.run_key"] for r in runs) == sorted(
        o.run_key for o in observations
    )
    assert half.info.run_id not in {r.info.run_id for r in runs}
    first = next(r for r in runs if r.data.tags["pmlray.run_key"] == observations[0].run_key)
    assert first.data.metrics["delta_loss"] == pytest.approx(observations[0].delta_loss)
    assert first.data.metrics["charged_steps"] == observations[0].charged_steps
    assert first.data.metrics["control_delta_loss"] == observations[0].control_delta_loss
    last = next(r for r in runs if r.data.tags["pmlray.run_key"] == observations[2].run_key)
    assert "control_delta_loss" not in last.data.metrics
    assert first.data.params["lora_rank"] == str(points[0].lora_rank)
    assert first.data.metrics["point/lora_rank"] == points[0].lora_rank
    assert [a.path for a in client.list_artifacts(first.info.run_id, "adapter")] == [
        "adapter/adapter_config.json"
    ]
    assert first.info.end_time == 1767323045000
    assert first.info.end_time - first.info.start_time == round(500 * observations[0].gpu_seconds)
    (given,) = first.inputs.dataset_inputs
    assert (given.dataset.digest, given.tags[0].value) == ("abc123", "training")
    source = json.loads(given.dataset.source)
    assert source["kind"] == spec["task"]["kind"] and source["seq_len"] == points[0].seq_len
    assert not last.inputs.dataset_inputs and client.list_artifacts(last.info.run_id) == []
    history = client.get_metric_history(first.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [*observations[0].curve]
    parent = client.get_run(again._parent)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["law/rank_exponent"] == 0.7
    assert client.get_metric_history(again._parent, "law/rank_exponent")[0].step == 12
    assert {a.path for a in client.list_artifacts(again._parent)} == {"report.json", "search.json"}


def test_a_run_s_curve_grows_while_it_trains_and_the_run_is_one(
    database: Path, make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search, search_id = make_search(), "grows"
    planned = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:2]]
    uri, spec = local_tracking_uri(database), search.spec.model_dump(mode="json")
    tracker = MlflowTracker(uri, study_of(database, search_id), spec)

    def tell(steps: int, loss: float) -> None:
        row = {"steps": steps, "loss": loss}
        rows = [
            {"name": run_name(run), "tags": run_tags(run), "run_key": run.run_key, **row}
            for run in planned
        ]
        tracker.live(rows, 1000 * steps)

    client = MlflowClient(uri)
    tell(20, 9.0)
    tell(50, 5.0)
    first, _ = runs = sorted(children(client, search_id), key=lambda r: r.info.run_name)
    assert [r.info.status for r in runs] == ["RUNNING", "RUNNING"]
    assert first.info.run_name == run_name(planned[0])
    history = client.get_metric_history(first.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(20, 9.0), (50, 5.0)]

    done = observe(planned[0], 0, 0, 0.02, 1e-3)
    tracker.observe([done])
    # Late news of it changes nothing; that of the other, which was left out, ends with the search.
    tell(60, 4.0)
    tracker.finish([], "FINISHED")
    (found,) = children(client, search_id)
    assert found.info.run_id == first.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.metrics["delta_loss"] == pytest.approx(done.delta_loss)
    assert found.data.tags["pmlray.run_key"] == done.run_key
    steps = {m.step for m in client.get_metric_history(first.info.run_id, "loss")}
    assert steps == {20, 50, *(step for step, _ in done.curve)}


def test_sync_ends_what_a_killed_search_has_left_running(
    database: Path, make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """Its driver told of runs that trained, of which one was left out, and not of its end."""
    search, uri = make_search("name=killed"), local_tracking_uri(database)
    search_id, folder = search.spec.search_id, tmp_path / "store"
    store = FileStore(folder)
    (folder / SEARCH_FILE).write_text(search.spec.model_dump_json())
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:3]]
    journal = MirrorJournal(folder)
    journal.add("start")
    rows = [
        {"name": run_name(r), "tags": run_tags(r), "run_key": r.run_key, "steps": 9, "loss": 2.0}
        for r in runs
    ]
    journal.add("live", runs=rows)
    client = MlflowClient(uri)
    # Taken while the search ran: its tracker is gone.
    connect = mirror_of(store, journal, uri, search_id, search.spec, "pmlray/unit")
    Replay(store, journal, uri, connect).send()
    assert [r.info.status for r in children(client, search_id)] == ["RUNNING"] * 3
    store.put(observe(runs[0], 0, 0, 0.02, 1e-3))
    gone = FailedRun(runs[1].run_key, runs[1].point, 0, 1, "left out", 1.0, left_out=True)
    store.put_failure(gone)
    another = f"sqlite:///{database / 'another.db'}"
    for uri_of, sent in ((uri, 2), (uri, 0), (another, 4)):
        found = sync_store(folder, uri_of, None)
        assert (found["sent"], found["observations"]) == (sent, 1)
        client = MlflowClient(uri_of)
        (measured,) = children(client, search_id)
        assert measured.data.tags["pmlray.run_key"] == runs[0].run_key
        assert measured.info.status == "FINISHED"
        parent = client.get_run(measured.data.tags["mlflow.parentRunId"])
        assert parent.info.status == "KILLED"
    # Whoever goes on with it runs again, and is not ended while it does.
    journal = MirrorJournal(folder)
    journal.add("start")
    assert journal.is_open()
    journal.add("finish", artifacts=[], status="FINISHED")
    assert sync_store(folder, uri, None)["sent"] == 2
    assert MlflowWatch(uri, search_id).look().status == "FINISHED"


def test_the_load_of_a_node_is_kept_once_beside_that_of_others(database: Path) -> None:
    uri = local_tracking_uri(database)
    tracker = MlflowTracker(uri, study_of(database, "loaded"), {})
    client = MlflowClient(uri)
    start = client.get_run(tracker.identity).info.start_time
    # More than one request takes.
    samples = tuple((start + 1000 * i, {"cpu": float(i), "memory": 1.0}) for i in range(501))
    loads = NodeLoad(0, "gpu-7", samples), NodeLoad(0, "gpu-8", samples[:1])
    for _ in range(2):
        tracker.load(loads)
    for node, n in (("gpu-7", 501), ("gpu-8", 1)):
        found = client.get_metric_history(tracker.identity, f"system/{node}/cpu")
        assert [(m.timestamp, m.step, m.value) for m in found] == [
            (start + 1000 * i, i, float(i)) for i in range(n)
        ]


def test_a_comparison_is_not_taken_for_a_search(database: Path) -> None:
    spec, _ = prepare_comparison(ROOT / "searches" / "comparisons" / "smoke.yaml")
    uri = local_tracking_uri(database)
    MlflowTracker(uri, study_of(database, spec.compare_id), spec.model_dump(mode="json"))
    with pytest.raises(StoreError, match="a comparison is watched by its store"):
        MlflowWatch(uri, spec.compare_id)


def test_a_placements_name_may_have_a_plus(database: Path) -> None:
    named = {"q_proj+v_proj": {"layers": "all"}, "down_proj": {"layers": [2]}}
    uri = local_tracking_uri(database)
    tracker = MlflowTracker(uri, study_of(database, "plus"), {"space": {"placement": named}})
    params = MlflowClient(uri).get_run(tracker._parent).data.params
    assert params["space.placement.q_proj:v_proj.layers"] == "all"
    assert params["space.placement.down_proj.layers"] == "[2]"
