"""Which run of MLflow a store's runs go under: of one store alone, where its login may write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pmlray.backends.mlflow.parents import StudyInMlflow, newest_parent
from pmlray.backends.mlflow.spooled_tracker import local_tracking_uri
from pmlray.backends.mlflow.tracker import MlflowTracker
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import TrackerAway
from tests.fakes import observe
from tests.mlflow_runs import all_runs

SPEC = {"name": "unit", "task": {"kind": "phonebook"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a database, whose making takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(local_tracking_uri(folder))


def study(folder: Path, search_id: str, store_id: str, **more: str) -> StudyInMlflow:
    return StudyInMlflow(search_id, more.pop("experiment", "pmlray/unit"), store_id, folder, **more)


def test_two_stores_of_one_search_have_a_parent_each(
    folder: Path, client: MlflowClient, make_search: Callable[..., PreparedSearch]
) -> None:
    search = make_search()
    uri, search_id = local_tracking_uri(folder), search.spec.search_id
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:3]]
    measured = [observe(run, 0, i, 0.02, 1e-3) for i, run in enumerate(runs)]
    first, second = (
        MlflowTracker(uri, study(folder / name, search_id, name * 12), SPEC) for name in "ab"
    )
    first.observe(measured[:2])
    second.observe(measured[1:])
    # One that begins anew finds its own, and nothing of the other's, such as half-written runs.
    again = MlflowTracker(uri, study(folder / "moved", search_id, "a" * 12), SPEC)
    assert again.identity == first.identity != second.identity
    assert again.run_keys == {o.run_key for o in measured[:2]}
    assert second.run_keys == {o.run_key for o in measured[1:]}
    tags = client.get_run(first.identity).data.tags
    assert tags["pmlray.store"].endswith(f":{folder / 'moved'}")
    assert tags["mlflow.source.name"] == tags["pmlray.store"]
    assert tags["mlflow.user"] == client.get_run(second.identity).data.tags["mlflow.user"] != ""


def test_whoever_asks_for_a_search_of_two_stores_hears_which_it_is(
    folder: Path, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    uri = local_tracking_uri(folder)
    first = MlflowTracker(uri, study(folder / "old", "asked-1", "a" * 12), SPEC)
    (run,) = [newest_parent(client, "asked-1")]
    assert run is not None and run.info.run_id == first.identity and not caplog.records
    second = MlflowTracker(uri, study(folder / "new", "asked-1", "b" * 12), SPEC)
    run = newest_parent(client, "asked-1")
    assert run is not None and run.info.run_id == second.identity
    assert str(folder / "new") in caplog.text and str(folder / "old") in caplog.text
    assert newest_parent(client, "asked-2") is None


def test_a_store_of_before_stays_where_it_is(folder: Path, client: MlflowClient) -> None:
    """Parents had neither a store's id nor an experiment of their own, and stores shared them."""
    uri, name = local_tracking_uri(folder), "pmlray"
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if found is None else found.experiment_id
    tags = {"pmlray.search_id": "old-1", "pmlray.kind": "search"}
    parent = client.create_run(experiment, tags=tags).info.run_id
    first, second = (
        MlflowTracker(uri, study(folder / s, "old-1", s * 12, earlier_parent=parent), SPEC)
        for s in "ab"
    )
    assert first.identity == parent
    # Somebody else went on with it first.
    assert second.identity != parent
    assert client.get_run(second.identity).info.experiment_id != experiment
    # Of another search, or gone: a file of a store may say anything.
    for earlier in (parent, "0" * 32, "' or 1"):
        other = study(folder / "c", f"old-{len(earlier)}", "c" * 12, earlier_parent=earlier)
        assert MlflowTracker(uri, other, SPEC).identity != parent


def test_the_experiment_is_the_one_named_and_a_deleted_one_is_told(
    folder: Path, client: MlflowClient
) -> None:
    uri = local_tracking_uri(folder)
    tracker = MlflowTracker(uri, study(folder, "named-1", "d" * 12, experiment="lab"), SPEC)
    experiment = client.get_experiment_by_name("lab")
    assert experiment is not None
    assert client.get_run(tracker.identity).info.experiment_id == experiment.experiment_id
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(TrackerAway, match="experiment lab of MLflow was deleted: restore it"):
        MlflowTracker(uri, study(folder, "named-2", "e" * 12, experiment="lab"), SPEC)


def test_a_login_without_rights_works_in_an_experiment_of_its_own(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Of a server, tests/integration/tracking/test_logins.py asks the same."""
    uri = local_tracking_uri(folder)
    MlflowTracker(uri, study(folder, "shared-1", "a" * 12, experiment="shared"), SPEC)
    shared = client.get_experiment_by_name("shared")
    assert shared is not None
    create = MlflowClient.create_run

    def refuse(self: MlflowClient, experiment_id: str, *args: object, **kwargs: object) -> object:
        if experiment_id == shared.experiment_id:
            raise MlflowException("Permission denied", error_code=1004)
        return create(self, experiment_id, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "create_run", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    tracker = MlflowTracker(uri, study(folder, "shared-1", "b" * 12, experiment="shared"), SPEC)
    own = client.get_experiment_by_name("shared (ada)")
    assert own is not None
    run = client.get_run(tracker.identity)
    assert run.info.experiment_id == own.experiment_id
    assert run.data.tags["mlflow.user"] == "ada"
    assert "ada may not write to the experiment shared" in caplog.text


def test_the_page_is_a_table_of_the_search_with_its_columns(
    folder: Path, client: MlflowClient
) -> None:
    uri = local_tracking_uri(folder)
    law = MlflowTracker(uri, study(folder, "page-1", "a" * 12), SPEC)
    compared = MlflowTracker(uri, study(folder, "page-2", "b" * 12), {**SPEC, "points": [{}]})
    for tracker, column in ((law, "metrics.`delta_loss`"), (compared, "params.`method`")):
        address = urlsplit(tracker.page)
        assert (address.scheme, address.netloc) == ("http", "127.0.0.1:5000")
        path, _, query = address.fragment.partition("?")
        experiment = client.get_experiment(client.get_run(tracker.identity).info.experiment_id)
        assert path == f"/experiments/{experiment.experiment_id}/runs"
        asked = parse_qs(query)
        assert asked["workflowType"] == ["machine_learning"]
        (key,) = asked["viewStateShareKey"]
        view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        assert tracker.identity in view["searchFilter"] and column in view["selectedColumns"]
        # The filter is one that MLflow takes.
        assert all_runs(client, view["searchFilter"]) == []
