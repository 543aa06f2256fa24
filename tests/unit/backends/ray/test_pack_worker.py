"""A worker: what is done is not begun again, a fault of the pack is recorded, others are raised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmlray.backends.ray.pack_task import PackWork, spent_before
from pmlray.backends.ray.pack_worker import run_pack
from pmlray.backends.store.attempts import (
    MOST_WITHOUT_PROGRESS,
    Attempt,
    AttemptLog,
    lost_seconds,
    without_progress,
)
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.errors import DataError, ModelError, StoreError
from pmlray.study.budget.pack_queue import PackQueue
from pmlray.types import FailedRun, Pack, PackResult, PackTimes
from tests.fakes import SyntheticRunner


@pytest.fixture
def work(make_search: Callable[..., PreparedSearch], tmp_path: Path) -> PackWork:
    search = make_search()
    runs = (search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points()[:3])
    return PackWork(search, Pack(0, tuple(runs)), str(tmp_path / "store"), 1, 1, 60.0, 1)


def measure_all(work: PackWork) -> Callable[[FileStore, Checkpoints], float]:
    def measure(store: FileStore, checkpoints: Checkpoints) -> float:
        SyntheticRunner(store).run(work.pack)
        return 2.5

    return measure


def never(store: FileStore, checkpoints: Checkpoints) -> float:
    raise AssertionError("began again what was done")


def test_a_pack_is_measured_once(work: PackWork) -> None:
    store = FileStore(Path(work.store))
    with store.driver_lock():
        assert run_pack(work, measure_all(work)) == 2.5
        assert run_pack(work, never) == 0.0
    assert len(store.observations()) == 3


def test_what_a_pack_has_spent_is_known_after_a_restart(work: PackWork) -> None:
    store, pack = FileStore(Path(work.store)), work.pack
    assert spent_before(store, pack) == 0.0
    SyntheticRunner(store).run(replace(pack, runs=pack.runs[:1]))
    (measured,) = store.observations()
    gone = FailedRun(pack.runs[1].run_key, pack.runs[1].point, 0, 1, "left out", 3.0, left_out=True)
    # Of an earlier round, and of one that was measured after all.
    store.put_failure(replace(gone, run_key=pack.runs[2].run_key, round=7))
    store.put_failure(replace(gone, run_key=measured.run_key))
    assert spent_before(store, pack) == measured.gpu_seconds
    store.put_failure(gone)
    assert spent_before(store, pack) == measured.gpu_seconds + 3.0
    assert spent_before(store, replace(pack, round=7)) == 3.0


def test_runs_of_a_living_worker_are_left_to_it(
    work: PackWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmlray.backends.ray.pack_worker.LEASE_WAIT_SECONDS", 0.0)
    store = FileStore(Path(work.store))
    with store.driver_lock():
        other = store.leases.take(work.pack.runs[1].run_key)
        with pytest.raises(StoreError, match=work.pack.runs[1].run_key):
            run_pack(work, never)
        other.give_back()
        assert run_pack(work, measure_all(work)) == 2.5


def test_what_the_pack_is_to_blame_for_is_recorded_and_the_rest_raised(work: PackWork) -> None:
    store = FileStore(Path(work.store))

    def lost(store: FileStore, checkpoints: Checkpoints) -> float:
        raise MemoryError("out of memory")

    def bad(store: FileStore, checkpoints: Checkpoints) -> float:
        SyntheticRunner(store).run(replace(work.pack, runs=work.pack.runs[:1]))
        raise DataError("a record is too long")

    with store.driver_lock():
        with pytest.raises(MemoryError):
            run_pack(work, lost)
        assert store.failures() == ()
        assert run_pack(work, bad) == 0.0
    assert [o.run_key for o in store.observations()] == [work.pack.runs[0].run_key]
    assert [(f.run_key, f.reason) for f in store.failures()] == [
        (run.run_key, "a record is too long") for run in work.pack.runs[1:]
    ]


def test_a_refused_base_is_no_fault_of_its_runs(work: PackWork) -> None:
    store = FileStore(Path(work.store))

    def refused(store: FileStore, checkpoints: Checkpoints) -> float:
        raise ModelError("its weights lack lm_head.weight")

    with store.driver_lock():
        assert run_pack(work, refused) == 0.0
    failures = store.failures()
    assert len(failures) == 3 and all(f.bad_base and f.infrastructure for f in failures)
    queue = PackQueue(store, (), failures, max_failures=2)
    # Those of before count no more: the base may be mended by now.
    queue.check()
    queue.take_back(PackResult(work.pack, (), failures, PackTimes("x", 0, 0.0, 1.0)))
    with pytest.raises(ModelError, match="lm_head"):
        queue.check()


def test_a_pack_that_gets_nowhere_is_given_up_with_what_it_cost(work: PackWork) -> None:
    store = FileStore(Path(work.store))

    def dies(store: FileStore, checkpoints: Checkpoints) -> float:
        folder = store.checkpoints(work.pack.pack_id)
        attempts = AttemptLog(folder)
        attempts._own = (sorted(folder.glob("attempt-*.json"))[-1], Attempt(0))
        attempts.note(6.0)
        raise MemoryError("out of memory")

    with store.driver_lock():
        for _ in range(MOST_WITHOUT_PROGRESS):
            with pytest.raises(MemoryError):
                run_pack(work, dies)
        assert run_pack(work, never) == 0.0
    failures: tuple[FailedRun, ...] = store.failures()
    assert len(failures) == 3 and "without getting further" in failures[0].reason
    assert all(f.infrastructure for f in failures)
    assert sum(f.gpu_seconds for f in failures) == pytest.approx(6.0 * MOST_WITHOUT_PROGRESS)


def test_a_worker_leaves_when_its_driver_asks_and_neither_counts_nor_fails(work: PackWork) -> None:
    store = FileStore(Path(work.store))

    def leaves(store: FileStore, checkpoints: Checkpoints) -> float:
        raise AskedToLeave("asked")

    with store.driver_lock():
        for _ in range(2 * MOST_WITHOUT_PROGRESS):
            assert run_pack(work, leaves) is None
        assert run_pack(work, measure_all(work)) == 2.5
    assert store.failures() == ()


@given(st.lists(st.builds(Attempt, st.integers(0, 3), st.floats(0, 10), st.booleans()), min_size=1))
def test_only_attempts_cut_off_at_one_place_count(attempts: list[Attempt]) -> None:
    n = without_progress(attempts)
    tail = attempts[len(attempts) - n :]
    assert all(not a.over and a.step == attempts[-1].step for a in tail)
    before = attempts[: len(attempts) - n]
    assert not before or before[-1].over or before[-1].step != attempts[-1].step
    assert lost_seconds(attempts) == pytest.approx(
        sum(a.unsaved_seconds for a in attempts if not a.over)
    )
