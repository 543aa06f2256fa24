"""Files that a study keeps of itself, damaged: an error that names the file, or a safe way on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.api.search_run import report_store
from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.store.attempts import Attempt, AttemptLog
from pmlray.backends.store.file_leases import LeaseFolder
from pmlray.cli import app
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import (
    SEARCH_FILE,
    SUMMARY_FILE,
    Card,
    RunFacts,
    Summary,
    read_stored,
)
from pmlray.errors import StoreError

DAMAGED = ("", "{", "[]", "null", '{"name": 1}', "[" * 50_000)
COMMANDS = (["report"], ["watch", "--once"], ["fit"], ["sync"], ["table"])


@pytest.fixture
def store(make_search: Callable[..., PreparedSearch], tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / SEARCH_FILE).write_text(make_search().spec.model_dump_json())
    return folder


@pytest.mark.parametrize("content", DAMAGED)
def test_a_store_with_a_damaged_search_says_which_file(content: str, store: Path) -> None:
    (store / SEARCH_FILE).write_text(content)
    for command, *options in COMMANDS:
        more = [str(store.parent / "table.csv")] if command == "table" else []
        error = CliRunner().invoke(app, [command, *options, str(store), *more]).exception
        assert isinstance(error, StoreError), (command, error)
        assert str(store / SEARCH_FILE) in str(error) and "move it away" in str(error)


@pytest.mark.parametrize("content", [*DAMAGED, '{"facts": 1}', '{"facts": {"versions": {"a": 1}}}'])
def test_a_damaged_summary_is_named(content: str, store: Path) -> None:
    (store / SUMMARY_FILE).write_text(content)
    with pytest.raises(StoreError, match=SUMMARY_FILE):
        report_store(store)


@pytest.mark.usefixtures("short_pages")
def test_a_report_keeps_the_facts_of_the_run_before_it(store: Path) -> None:
    facts = {"machine": "two cores", "versions": {"ray": "2"}, "training_share": None}
    for told in (facts, None):
        given = None if told is None else RunFacts(**told)
        assert report_store(store, given).to_json()["machine"] == "two cores"
        kept = read_stored(Summary, store / SUMMARY_FILE).facts
        assert kept.model_dump(exclude_unset=True) == facts


def test_an_error_shows_nothing_of_what_a_link_leads_to(store: Path) -> None:
    (store.parent / "secret").write_text('"hunter2"')
    (store / SEARCH_FILE).unlink()
    os.symlink(store.parent / "secret", store / SEARCH_FILE)
    with pytest.raises(StoreError) as caught:
        report_store(store)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("change", [{"id": 1}, {"id": ""}, {"dtype": "int8"}, {"identity": None}])
def test_a_card_with_another_base_than_a_models_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    base = {"id": "a", "revision": None, "identity": "b", "dtype": "float32"}
    card = {"base_model": base, "prompt_format": "chat", "more": 1}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card))
    # Cards of before said nothing of ends, as none were trained.
    trained_with = {**base, "prompt_format": "chat", "end": False}
    assert read_stored(Card, path).trained_with() == trained_with
    path.write_text(json.dumps({**card, "end": True}))
    assert read_stored(Card, path).trained_with() == {**trained_with, "end": True}
    path.write_text(json.dumps({**card, "base_model": base | change}))
    with pytest.raises(StoreError, match="base_model"):
        read_stored(Card, path)


@pytest.mark.parametrize("content", ["", "{", "5", '{"host": 1}', '{"pid": "../../1"}', "[" * 9999])
def test_of_a_damaged_lease_only_the_beats_count(content: str, tmp_path: Path) -> None:
    leases, path = LeaseFolder(tmp_path, stale=30), tmp_path / "run" / "3"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(StoreError, match="an unknown host holds run"):
        leases.take("run")
    assert not leases.is_free("run")
    (tmp_path / "clock").touch()
    then = (tmp_path / "clock").stat().st_mtime - 31
    os.utime(path, (then, then))
    assert leases.is_free("run") and leases.take("run").generation == 4


@pytest.mark.parametrize("name", ["007", "²", "٣", "-1", "9" * 30, "2.other", "notes"])
def test_a_stray_file_is_no_lease(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("")
    assert LeaseFolder(tmp_path).take("run").generation == 1


def test_what_stands_in_the_place_of_a_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "1").mkdir(parents=True)
    with pytest.raises(StoreError, match="run/1 cannot be read"):
        LeaseFolder(tmp_path).take("run")
    (tmp_path / "run" / "1").rmdir()
    os.mkfifo(tmp_path / "run" / "1")
    # A pipe that nobody writes to is empty, and is not waited for.
    with pytest.raises(StoreError, match="an unknown host"):
        LeaseFolder(tmp_path).take("run")


@pytest.mark.parametrize("content", ["", "{", "5", '{"step": "1"}', '{"steps": 1}'])
def test_a_damaged_attempt_is_named(content: str, tmp_path: Path) -> None:
    log = AttemptLog(tmp_path)
    log.begin(3)
    assert log.all() == (Attempt(3),)
    (path,) = tmp_path.glob("attempt-*.json")
    path.write_text(content)
    with pytest.raises(StoreError, match=path.name):
        log.all()


@pytest.mark.parametrize(
    "entry",
    [
        '{"kind": "observe"}',
        '{"kind": "observe", "run_keys": ["../../x"]}',
        '{"kind": "law", "metrics": {"a": "1"}, "gpu_seconds": 1, "time_ms": 1}',
        '{"kind": "progress", "metrics": {"a": "1"}, "gpu_seconds": 1, "time_ms": 1}',
        '{"kind": "finish", "artifacts": [1], "status": "FINISHED"}',
        '{"kind": ["start"]}',
    ],
)
def test_an_entry_that_no_mirror_could_be_told_is_named(entry: str, tmp_path: Path) -> None:
    journal = MirrorJournal(tmp_path)
    journal.add("start")
    (path,) = (tmp_path / "mirror").glob("0*.json")
    path.write_text(entry)
    with pytest.raises(StoreError, match=path.name):
        list(journal.entries())


@pytest.mark.parametrize("content", ["", "{", "5", '{"a": 1}', '{"a": ["b", "c"]}'])
def test_when_what_was_sent_cannot_be_read_all_is_sent_again(content: str, tmp_path: Path) -> None:
    journal = MirrorJournal(tmp_path)
    journal.add("start")
    journal.mark_sent("memory:", "it", 1)
    assert journal.waiting("memory:") == 0 and journal.sent("memory:", "it") == 1
    (tmp_path / "mirror" / "sent.json").write_text(content)
    assert journal.waiting("memory:") == 1 and journal.sent("memory:", "it") == 0
    journal.mark_sent("memory:", "it", 1)
    assert journal.waiting("memory:") == 0
