"""Workers that stay: one job trains packs one after another, and a job that ends is replaced."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from pmlray.backends.ray import worker_pool
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.ray.worker_pool import PackOutcome, WarmWorkers
from pmlray.types import DesignPoint, Pack, PlannedRun


def pack(number: int) -> Pack:
    run = PlannedRun(DesignPoint(1, 16, 10), "sft", 0, 0, "law", f"{number:016x}")
    return Pack(number, (run,))


class Jobs(WarmWorkers):
    """Its jobs are threads of this process that do what a worker of Ray Train would."""

    def __init__(self, fails: int | None = None, seconds: float | None = 1.5) -> None:
        super().__init__(WorkerPlan(None, "", 0, 1, 1, 60.0))  # type: ignore[arg-type]
        self.trained: list[tuple[int, int]] = []
        self.together, self._fails, self._seconds = threading.Barrier(2), fails, seconds

    def _start(self) -> Any:
        job = worker_pool._Job(len(self._jobs))
        self._jobs[job.number] = job
        self._threads.submit(self._train, job, None)
        return job

    def _train(self, job: Any, me: Any) -> None:
        while (given := self.next_pack(job.number)) != "end":
            if isinstance(given, str):
                continue
            self.trained.append((job.number, given.round))
            if given.round == self._fails:
                job.ended.set_exception(RuntimeError("out of memory"))
                return
            if given.round >= 100:
                try:
                    self.together.wait(timeout=10)
                except threading.BrokenBarrierError as error:
                    job.ended.set_exception(error)
                    return
            self.finished(job.number, self._seconds)
        job.ended.set_result(None)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "POLL_SECONDS", 0.02)


def test_one_job_trains_pack_after_pack() -> None:
    jobs = Jobs()
    assert [jobs.run(pack(i)) for i in range(4)] == [PackOutcome(1.5)] * 4
    assert jobs.trained == [(0, 0), (0, 1), (0, 2), (0, 3)]
    jobs.close()
    jobs._jobs[0].ended.result(timeout=10)


def test_packs_at_once_have_a_job_each_and_no_more() -> None:
    jobs = Jobs()
    with ThreadPoolExecutor(2) as threads:
        for first in (100, 102):
            list(threads.map(jobs.run, (pack(first), pack(first + 1))))
    assert len(jobs._jobs) == 2 and len(jobs.trained) == 4
    jobs.close()
    for job in jobs._jobs.values():
        job.ended.result(timeout=10)


def test_as_many_workers_as_packs_are_out_start_ahead() -> None:
    jobs = Jobs()
    jobs.prepare(1)
    jobs.prepare(1)
    assert len(jobs._jobs) == 1
    assert jobs.run(pack(0)) == PackOutcome(1.5) and jobs.trained == [(0, 0)]
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(jobs.run, pack(100))
        while (0, 100) not in jobs.trained:
            time.sleep(0.01)
        # One is at work: there is one for two packs already.
        jobs.prepare(1)
        assert len(jobs._jobs) == 1
        jobs.prepare(2)
        assert len(jobs._jobs) == 2
        assert threads.submit(jobs.run, pack(101)).result(timeout=10) == PackOutcome(1.5)
        assert first.result(timeout=10) == PackOutcome(1.5)
    assert len(jobs._jobs) == 2
    jobs.close()
    for job in jobs._jobs.values():
        job.ended.result(timeout=10)


def test_a_worker_that_starts_is_kept_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A clock of its own: the machine's goes on while others use the cores.
    now = [0.0]
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now[0]})
    monkeypatch.setattr(worker_pool, "time", clock)
    monkeypatch.setattr(Jobs, "_train", lambda *_: None)
    jobs = Jobs()
    jobs.prepare(1)
    now[0] += 10 * worker_pool.KEEP_SECONDS
    # Its first question for a pack, from when on it is kept for so long.
    assert jobs.next_pack(0) == "wait"
    now[0] += worker_pool.KEEP_SECONDS
    assert jobs.next_pack(0) == "wait"
    now[0] += 0.1
    assert jobs.next_pack(0) == "end" and jobs._idle == []


def test_a_job_that_dies_fails_its_pack_alone() -> None:
    jobs = Jobs(fails=1)
    outcomes = [jobs.run(pack(i)) for i in range(3)]
    assert outcomes == [PackOutcome(1.5), PackOutcome(0.0, "out of memory"), PackOutcome(1.5)]
    assert jobs.trained == [(0, 0), (0, 1), (1, 2)]
    jobs.close()
    jobs._jobs[1].ended.result(timeout=10)


def test_a_worker_that_was_lost_goes_on_with_its_pack() -> None:
    jobs = Jobs()
    job = jobs._jobs[0] = worker_pool._Job(0)
    job.packs.put(pack(0))
    job.packs.put(pack(1))
    # Ray Train starts the function of a lost worker again.
    assert jobs.next_pack(0) == jobs.next_pack(0) == pack(0)
    jobs.finished(0, 1.5)
    assert job.current.result(timeout=1) == 1.5 and jobs.next_pack(0) == pack(1)


def test_a_worker_that_was_asked_to_leave_has_not_failed() -> None:
    jobs = Jobs(seconds=None)
    assert jobs.run(pack(0)) == PackOutcome(None)
    jobs.close()
    jobs._jobs[0].ended.result(timeout=10)


def test_an_idle_worker_gives_its_device_back(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    jobs.run(pack(0))
    monkeypatch.setattr(worker_pool, "KEEP_SECONDS", 0.05)
    jobs._jobs[0].ended.result(timeout=10)
    assert jobs.run(pack(1)) == PackOutcome(1.5)
    assert jobs.trained == [(0, 0), (1, 1)]
    jobs.close()
    jobs._jobs[1].ended.result(timeout=10)


def test_the_end_waits_for_workers_that_are_there_and_for_no_other() -> None:
    jobs = Jobs()
    jobs.run(pack(0))
    # One that is still starting asks for nothing.
    jobs._jobs[1] = worker_pool._Job(1)
    began = time.monotonic()
    jobs.close(10.0)
    assert jobs._jobs[0].ended.done() and time.monotonic() < began + 5
    assert jobs.next_pack(1) == "end"


def test_what_waits_for_a_worker_is_counted_while_none_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(worker_pool.time, "monotonic", lambda: now)
    jobs = Jobs()
    assert jobs.waited() == 0.0
    jobs._jobs[0] = worker_pool._Job(0, without_workers=now)
    now += 7.0
    assert jobs.waited() == 7.0
    jobs.has_workers(0, True)
    # A second one waits, but the first is at work.
    jobs._jobs[1] = worker_pool._Job(1, without_workers=now)
    now += 20.0
    assert jobs.waited() == 0.0
    # The first has lost its worker; Ray Train tries again and again to get another.
    jobs.has_workers(0, False)
    for _ in range(3):
        now += 10.0
        jobs.has_workers(0, False)
    assert jobs.waited() == 30.0
    jobs._jobs[0].ended.set_result(None)
    jobs.has_workers(1, True)
    assert jobs.waited() == 0.0


def test_where_no_worker_comes_packs_come_back_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Jobs, "_train", lambda *_: None)
    jobs = Jobs()
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(jobs.run, pack(0))
        while not jobs._jobs:
            time.sleep(0.01)
        jobs.give_up("nothing is free")
        assert waits.result(timeout=10) == PackOutcome(None, "nothing is free")
    assert jobs.run(pack(1)) == PackOutcome(None, "nothing is free")
    # One that comes after all finds nothing to do.
    assert jobs.next_pack(0) == "end"
