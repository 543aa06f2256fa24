"""What a tracker is told reaches its mirror in order and once, however often either goes away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmlray.backends.mlflow.journal import MirrorJournal, due, entry_name
from pmlray.backends.mlflow.node_load import NodeLoad, put_load
from pmlray.backends.mlflow.spooled_tracker import Replay, SpooledTracker
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import StoreError, TrackerAway
from pmlray.live_packs import LivePack, LiveRun
from pmlray.types import Observation
from tests.fakes import observe

URI = "http://user:secret@mlflow:5000"


class FakeMirror:
    """A mirror that may be away, or die as it took something; it leaves alone what it has."""

    def __init__(self, identity: str = "first") -> None:
        self.identity = identity
        self.page = f"{URI}/#/{identity}"
        self.got: list[object] = []
        self.away = False
        self.dies_after: object = None

    @property
    def run_keys(self) -> frozenset[str]:
        return frozenset(what for what in self.got if isinstance(what, str)) - {"start", "gpu-7"}

    def take(self, what: object) -> None:
        if self.away:
            raise TrackerAway("away")
        if what not in self.got:
            self.got.append(what)
        if what == self.dies_after:
            self.dies_after = None
            raise TrackerAway("died")

    def start(self) -> None:
        self.take("start")

    def observe(self, observations: Iterable[Observation]) -> None:
        for o in observations:
            self.take(o.run_key)

    def load(self, loads: Iterable[NodeLoad]) -> None:
        for load in loads:
            self.take(load.node)

    def law(self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int) -> None:
        self.take((metrics["r2"], gpu_seconds, time_ms))

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int) -> None:
        self.take(("progress", dict(metrics), gpu_seconds))

    def live(self, runs: Sequence[Mapping[str, Any]], time_ms: int) -> None:
        for row in runs:
            self.take((row["run_key"], row["steps"], row["loss"]))

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        self.take(([path.name for path in artifacts], status))


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def measured(make_search: Callable[..., PreparedSearch], store: FileStore) -> list[Observation]:
    search = make_search()
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:4]]
    found = [observe(run, 0, i, 0.02, 1e-3) for i, run in enumerate(runs)]
    for o in found:
        store.put(o)
    return found


def connecting(mirror: FakeMirror) -> Callable[[], FakeMirror]:
    def connect() -> FakeMirror:
        if mirror.away:
            raise TrackerAway("away")
        return mirror

    return connect


def test_nobody_waits_for_a_mirror_that_is_away_and_it_gets_all_in_order_once(
    store: FileStore, measured: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmlray.backends.mlflow.spooled_tracker.RETRY_SECONDS", 0.01)
    mirror = FakeMirror()
    mirror.away = True
    tracker = SpooledTracker(store, MirrorJournal(store.folder), URI, "lab", connecting(mirror))
    tracker.observe(measured[:2])
    # Of the pack that measured them; a worker keeps it before the pack comes home.
    put_load(store.folder, NodeLoad(0, "gpu-7", ((1000, {"cpu": 5.0}),)))
    tracker.law({"r2": 0.5}, 3.0)
    tracker.progress({"n_done": 2.0}, 3.0)
    tracker.observe(measured)
    # Had anyone waited, this would not have been reached.
    assert mirror.got == [] and MirrorJournal(store.folder).waiting(URI) == 5
    mirror.dies_after, mirror.away = measured[1].run_key, False
    (store.folder / "report.html").write_text("page")
    deadline = time.monotonic() + 20
    while MirrorJournal(store.folder).waiting(URI) and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.finish([store.folder / "report.html"], "FINISHED")
    keys = [o.run_key for o in measured]
    law = next(what for what in mirror.got if isinstance(what, tuple) and what[1] == 3.0)
    stood = ("progress", {"n_done": 2.0}, 3.0)
    end = (["report.html"], "FINISHED")
    assert mirror.got == ["start", *keys[:2], "gpu-7", law, stood, *keys[2:], end]
    assert MirrorJournal(store.folder).waiting(URI) == 0
    assert "secret" not in (store.folder / "mirror" / "sent.json").read_text()


def test_a_killed_driver_leaves_its_entries_to_the_next(
    store: FileStore, measured: list[Observation]
) -> None:
    journal = MirrorJournal(store.folder)
    journal.add("start")
    journal.add("observe", run_keys=[measured[0].run_key])
    mirror = FakeMirror()
    again = SpooledTracker(store, MirrorJournal(store.folder), URI, "lab", connecting(mirror))
    again.observe(measured)
    again.finish([], "FINISHED")
    assert mirror.got == ["start", *(o.run_key for o in measured), ([], "FINISHED")]


def test_a_mirror_that_was_lost_is_built_from_the_first_entry_on(
    store: FileStore, measured: list[Observation]
) -> None:
    first, anew = FakeMirror(), FakeMirror("second")
    tracker = SpooledTracker(store, MirrorJournal(store.folder), URI, "lab", connecting(first))
    tracker.observe(measured)
    tracker.law({"r2": 0.5}, 3.0)
    tracker.finish([], "FINISHED")
    replay = Replay(store, MirrorJournal(store.folder), URI, connecting(anew))
    assert replay.send() == 4 and anew.got == first.got
    assert replay.send() == 0


def test_what_a_mirror_has_is_asked_of_it_and_completed(
    store: FileStore, measured: list[Observation]
) -> None:
    """Somebody deletes runs there, which the journal counts as sent."""
    mirror = FakeMirror()
    tracker = SpooledTracker(store, MirrorJournal(store.folder), URI, "lab", connecting(mirror))
    tracker.observe(measured[:3])
    tracker.finish([], "FINISHED")
    assert tracker.page == mirror.page
    mirror.got.remove(measured[1].run_key)
    replay = Replay(store, MirrorJournal(store.folder), URI, connecting(mirror))
    assert replay.page is None
    assert replay.send() == 0 and len(mirror.run_keys) == 2
    assert replay.complete() == len(measured) == len(mirror.run_keys)


def test_a_journal_keeps_the_store_s_id_and_the_experiment(store: FileStore) -> None:
    journal = MirrorJournal(store.folder)
    assert journal.experiment() is None and journal.earlier_identity(URI) is None
    # As versions before this one wrote it.
    journal.add("start")
    journal.add("start", experiment="lab")
    again, other = MirrorJournal(store.folder), MirrorJournal(store.folder.with_name("other"))
    assert again.experiment() == "lab"
    assert journal.store_id() == again.store_id() != other.store_id()
    journal.mark_sent(URI, "first", 1)
    assert again.earlier_identity(URI) == "first"
    (store.folder / "mirror" / "store_id").write_text("' or 1")
    with pytest.raises(StoreError, match="is damaged"):
        journal.store_id()


@given(st.sets(st.integers(1, 30)), st.integers(0, 30))
def test_entries_are_due_in_order_and_without_a_gap(there: set[int], sent: int) -> None:
    names = [*map(entry_name, there), "sent.json", ".00000001.json.part"]
    found = due(names, sent)
    assert list(found) == list(range(sent + 1, sent + 1 + len(found)))
    assert set(found) <= there and sent + len(found) + 1 not in there


def test_how_runs_get_on_reaches_the_mirror(
    make_search: Callable[..., PreparedSearch], store: FileStore
) -> None:
    search = make_search()
    run = search.plan_run(search.spec.space.points()[0], "sft", 0, 0, "law")
    of_runs = (
        LiveRun(run.run_key, 12, 100, 3.5),
        # One that has had no step, and one that nobody knows.
        LiveRun(run.run_key, 0, 100, float("nan")),
        LiveRun("f" * 16, 12, 100, 3.5),
    )
    pack = LivePack("pack-000-a", "training", 1.0, 3, runs=of_runs)
    mirror = FakeMirror()
    tracker = SpooledTracker(store, MirrorJournal(store.folder), URI, "lab", lambda: mirror)
    tracker.live({run.run_key: run}, [pack])
    tracker.finish([], "FINISHED")
    assert mirror.got == ["start", (run.run_key, 12, 3.5), ([], "FINISHED")]
