"""`pmlray watch` tells from a store what the search itself tells, and changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.api.live_progress import Pace
from pmlray.api.search_run import study_of
from pmlray.api.status import StudyStatus, status_of
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.cli.watch_command import mirrored_standing
from pmlray.config import load_search
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import SpecError, StoreError
from pmlray.live_packs import LivePack, put_live
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import first_cost
from pmlray.study.search.progress import Progress
from pmlray.study.search.store_follower import FollowedSearch
from pmlray.types import Pack
from tests.fakes import MemoryTracker, SyntheticRunner

runner = CliRunner()


def test_it_shows_what_the_search_shows(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search("budget={gpu_seconds: 60, memft_gpu_seconds: 30}", "law.n_bootstrap=20")
    folder = tmp_path / "store"
    store, said, tracker = FileStore(folder), list[Progress](), MemoryTracker()
    clock, phases = 0.0, set()
    here, there = Pace(lambda: clock), Pace(lambda: clock)

    def told_in_both() -> StudyStatus:
        """What MLflow is told is what the store shows, and so is the ETA."""
        of_store = status_of(followed.look())
        of_mlflow = mirrored_standing(search.spec, tracker.stood)
        assert of_mlflow.needed == pytest.approx(of_store.needed)
        line = here.lines(of_store)[0]
        assert there.lines(of_mlflow)[0] == line
        phases.add((of_store.phase, of_store.n_failed > 0, "ETA at most" in line))
        return of_store

    (folder / SEARCH_FILE).write_text(search.spec.model_dump_json())
    cost = first_cost(search, gpu=False)
    running = LawSearch(search, store, study_of(search, store, cost), tracker, cost, 2, said.append)
    runs = SyntheticRunner(store, noise=0.05, fails=lambda run: run.run_key < "3")
    followed = FollowedSearch(search.spec, store)
    with store.driver_lock():
        for n_packs in range(100):
            pack = running.next_pack()
            if pack is None:
                break
            now, seen = status_of(said[-1]), told_in_both()
            assert (seen.n_done, seen.running, seen.spent) == (now.n_done, now.running, now.spent)
            assert (seen.n_failed, seen.phase, seen.left) == (now.n_failed, now.phase, now.left)
            assert seen.needed == pytest.approx(now.needed)
            if n_packs == 1:
                done = runner.invoke(app, ["watch", str(folder), "--once"])
                assert done.exit_code == 0 and "the search is running" in done.stderr
                assert f"{now.n_done} done, {now.n_running} running" in done.stderr
                told = LivePack(pack.pack_id, "training", time.time(), 2, 1, 30.0, 120.0, 9.0, 5.0)
                put_live(folder, told)
                done = runner.invoke(app, ["watch", str(folder), "--once"])
                assert "30 of 120 adapter-steps" in done.stderr
                # Silent for minutes: its worker is gone.
                put_live(folder, replace(told, time=time.time() - 1000))
                done = runner.invoke(app, ["watch", str(folder), "--once"])
                assert "adapter-steps" not in done.stderr
            clock += 10.0
            running.absorb(runs.run(pack))
            told_in_both()
    assert phases >= {("law", False, False), ("law", True, True), ("memft", True, True)}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    # Nobody is at work any more: it returns by itself.
    done = runner.invoke(app, ["watch", str(folder)])
    assert done.exit_code == 0 and "the search has ended" in done.stderr
    assert status_of(running.progress()).law in done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_memft_is_followed_by_the_law_that_chose_its_points(
    make_search: Callable[..., PreparedSearch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmlray.study.search.store_follower.REFIT_GROWTH", 100.0)
    search, store = make_search("law={forms: [power], n_bootstrap: 20}"), FileStore(tmp_path)
    points, runs = search.spec.space.points(), SyntheticRunner(store)
    followed = FollowedSearch(search.spec, store)
    known = []
    for phase, some in (("law", points[:10]), ("law", points[10:]), ("memft", points[:1])):
        method = "memft_ot" if phase == "memft" else "sft"
        planned = [search.plan_run(point, method, 0, 0, phase) for point in some]
        runs.run(Pack(len(known), tuple(planned)))
        law = followed.look().law
        assert law is not None
        known.append(law.fit.n_obs)
    # Not fitted again for ten more runs, but to all once MemFT's have begun.
    assert known[0] == known[1] < known[2]


def test_what_stays_is_said_once_and_leaving_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StudyStatus("law", 1, 2, 0, 10.0, 90.0, None, None)
    looks = iter([first, first, first, replace(first, n_done=2, n_failed=1)])

    def look() -> tuple[StudyStatus, str | None]:
        for standing in looks:
            return standing, None
        raise KeyboardInterrupt

    monkeypatch.setattr("pmlray.cli.watch_command._at_search", lambda folder: look)
    monkeypatch.setattr("pmlray.cli.watch_command.STORE_SECONDS", 0.0)
    done = runner.invoke(app, ["watch", str(tmp_path)])
    assert done.exit_code == 130
    said = [line.partition(" done")[0] for line in done.stderr.splitlines()]
    assert said == ["law: 1", "law: 2", "no longer watching; what is watched goes on"]


def test_a_search_is_found_by_its_file_or_its_id(
    search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = load_search(search_file)
    monkeypatch.setenv("PMLRAY_STORE", str(tmp_path / "stores"))
    FileStore(tmp_path / "stores" / search.search_id)
    spec = tmp_path / "stores" / search.search_id / SEARCH_FILE
    spec.write_text(search.model_dump_json())
    for named in (
        [str(search_file)],
        [str(search_file), "--from", str(tmp_path / "stores")],
        [search.search_id, "--from", str(tmp_path / "stores")],
    ):
        done = runner.invoke(app, ["watch", *named, "--once"])
        assert done.exit_code == 0 and "law: 0 done" in done.stderr, done.exception


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    done = runner.invoke(app, ["watch", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, StoreError) and "is no store" in str(done.exception)
    done = runner.invoke(app, ["watch", "some-id", "--from", "s3://bucket/x"])
    assert isinstance(done.exception, SpecError) and "not s3://" in str(done.exception)
