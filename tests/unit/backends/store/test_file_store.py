"""The store: whole files or none, written once, readable after anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import StoreError
from pmlray.types import FailedRun, Observation, PackTimes
from tests.fakes import observe


@pytest.fixture
def observation(make_search: Callable[..., PreparedSearch]):
    search = make_search()
    run = search.plan_run(search.spec.space.points()[3], "sft", 1, 0, "law")
    return observe(run, 2, 0, 0.02, 1e-3)


def test_round_trip_and_write_once(tmp_path: Path, observation) -> None:
    store = FileStore(tmp_path)
    store.put(observation)
    store.put(replace(observation, gpu_seconds=999.0))
    assert FileStore(tmp_path).observations() == (observation,)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("schema", [1, 2])
def test_observations_of_earlier_schemas_are_read(
    tmp_path: Path, observation: Observation, schema: int
) -> None:
    store = FileStore(tmp_path)
    old = observation.to_json() | {"schema": schema}
    later = {1: ("place", "charged_steps", "control_delta_loss"), 2: ("control_delta_loss",)}
    for name in later[schema]:
        del old[name]
    path = tmp_path / "observations" / f"{observation.run_key}.json"
    path.write_text(json.dumps(old))
    assert observation.control_delta_loss is not None
    assert store.observations() == (replace(observation, control_delta_loss=None),)


def test_tokens_while_training_are_kept_and_older_files_have_none(
    tmp_path: Path, observation: Observation
) -> None:
    store = FileStore(tmp_path)
    table = ((0, (1.2e-05, 0.3)), (1, (0.4, 0.998)))
    traced = replace(observation, token_p_curve=table)
    store.put(traced)
    assert store.observations() == (traced,)
    path = tmp_path / "observations" / f"{observation.run_key}.json"
    old = json.loads(path.read_text()) | {"schema": 4}
    del old["token_p_curve"]
    path.write_text(json.dumps(old))
    assert store.observations() == (observation,)


def test_ends_are_kept_and_older_files_count_answers_alone(
    tmp_path: Path, observation: Observation
) -> None:
    store = FileStore(tmp_path)
    recall = replace(observation.recall, exact=0.25, answered=0.5)
    ended = replace(observation, recall=recall, end_p=(0.9, 0.3))
    store.put(ended)
    assert store.observations() == (ended,) and ended.recall.right_answers == 0.5
    path = tmp_path / "observations" / f"{observation.run_key}.json"
    old = json.loads(path.read_text()) | {"schema": 5}
    del old["end_p"], old["recall"]["answered"]
    path.write_text(json.dumps(old))
    (found,) = store.observations()
    assert found == replace(observation, recall=replace(recall, answered=None))
    assert found.recall.right_answers == 0.25


def test_failures_and_times_are_kept(tmp_path: Path, observation) -> None:
    store = FileStore(tmp_path)
    failure = FailedRun(observation.run_key, observation.point, 1, 2, "out of memory", 3.5)
    store.put_failure(failure)
    store.put_failure(replace(failure, round=2))
    store.put_times(PackTimes("pack-000-abc", 0, 1.0, 2.0))
    again = FileStore(tmp_path)
    assert again.failures() == (failure, replace(failure, round=2))
    assert again.times() == (PackTimes("pack-000-abc", 0, 1.0, 2.0),)


def test_what_was_left_out_is_read_under_its_earlier_name(tmp_path: Path, observation) -> None:
    store = FileStore(tmp_path)
    failure = FailedRun(observation.run_key, observation.point, 1, 2, "too dear", 3.5)
    gone = replace(failure, left_out=True)
    store.put_failure(gone)
    (path,) = (tmp_path / "failures").iterdir()
    row = json.loads(path.read_text())
    row["handed_on"] = row.pop("left_out")
    path.write_text(json.dumps(row))
    assert store.failures() == (gone,)


def test_a_damaged_file_is_named(tmp_path: Path, observation) -> None:
    store = FileStore(tmp_path)
    store.put(observation)
    path = tmp_path / "observations" / f"{observation.run_key}.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreError, match=observation.run_key):
        store.observations()


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with (
        store.driver_lock(),
        pytest.raises(StoreError, match="another search"),
        FileStore(tmp_path).driver_lock(),
    ):
        pass
    with store.driver_lock():
        pass


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        FileStore(tmp_path / "file" / "store")
