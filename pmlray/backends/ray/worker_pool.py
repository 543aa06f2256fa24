"""Persistent Ray Train workers: started once per device, they train one pack after another.

A Ray Train job lasts as long as its train function. Here the function asks for the next pack when
it is done with one, so that the job's start, the imports and the load of the base happen once per
device and not once per pack. A worker that is lost is started again and resumes its pack. Where a
base is sharded, a job has several workers, and only their rank 0 asks for packs.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray

from pmlray.backends.ray.seen_store import train_in_store
from pmlray.backends.ray.sharded_workers import train_sharded_packs
from pmlray.backends.ray.worker_plan import WorkerPlan, let_go_of_pack, pack_stream
from pmlray.backends.store.file_store import FileStore
from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.live_packs import put_live
from pmlray.types import Pack

# Neither torch nor Ray Train is imported here: they would add seconds to the start of the driver
# and of the trials, which do not need them.
if TYPE_CHECKING:
    from pmlray.engine.runtime.checkpoints import Checkpoints

# Time after which a worker without a pack gives its device back.
KEEP_SECONDS = 60.0
POLL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PackOutcome:
    """Outcome of a pack: wall seconds inside optimiser steps (None: its worker was asked to leave,
    or there was none), and the reason why it failed ("" where it did not)."""

    training_seconds: float | None
    reason: str = ""


@dataclass
class _Job:
    """One Ray Train job: its packs to do (None: wake up and check for the end), and `out`, the pack
    at its worker.

    without_workers: monotonic time since which it has had no workers, None while it has.
    """

    number: int
    packs: queue.Queue[Pack | None] = field(default_factory=queue.Queue)
    out: Pack | None = None
    current: Future[float | None] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)
    # Infinite until its worker first asks for a pack: until then it is starting, not idle.
    idle_since: float = math.inf
    without_workers: float | None = field(default_factory=time.monotonic)


class WarmWorkers:
    """Ray actor that runs packs on Ray Train jobs, at most one job per pack handed out. Drivers and
    trials call `prepare` and `run`, workers `next_pack`, `finished` and `refuse`. The controllers
    of Ray Train run in threads of this actor and call `has_workers`."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan, self._lock = plan, threading.Lock()
        self._jobs: dict[int, _Job] = {}
        self._idle: list[_Job] = []
        self._n_at_work = 0
        self._closing, self._given_up = False, ""
        self._last_worker = 0.0
        # Unique, since Ray Train looks in the folder of a job's name for an earlier one's state.
        self._name = f"workers-{uuid4().hex[:12]}"
        self._threads = ThreadPoolExecutor(thread_name_prefix="ray-train")

    def prepare(self, n_out: int) -> None:
        """Start workers, so that each of n_out packs has one ahead of its `run`."""
        with self._lock:
            for _ in range(n_out - len(self._idle) - self._n_at_work):
                self._idle.append(self._start())

    def run(self, pack: Pack) -> PackOutcome:
        """Train a pack on an idle worker, else on a new one."""
        with self._lock:
            if self._given_up:
                return PackOutcome(None, self._given_up)
            job = self._idle.pop() if self._idle else self._start()
            job.current = Future()
            job.packs.put(pack)
            self._n_at_work += 1
        either: list[Future[Any]] = [job.current, job.ended]
        wait(either, return_when=FIRST_COMPLETED)
        with self._lock:
            self._n_at_work -= 1
            if job.current.done() and not self._given_up:
                job.idle_since = time.monotonic()
                self._idle.append(job)
        if job.current.done():
            seconds = job.current.result()
            return PackOutcome(seconds, self._given_up if seconds is None else "")
        error = job.ended.exception()
        reason = "its Ray Train worker ended" if error is None else _cause(error)
        return PackOutcome(0.0, reason)

    def next_pack(self, number: int) -> Pack | str:
        """Return a worker's next pack; "wait" when there is none yet, "end" when none will come. A
        restarted worker gets the unfinished pack of the lost one again."""
        job = self._jobs[number]
        if self._closing:
            return "end"
        if job.out is not None:
            return job.out
        job.idle_since = min(job.idle_since, time.monotonic())
        with suppress(queue.Empty):
            job.out = job.packs.get(timeout=POLL_SECONDS)
        if self._closing:
            return "end"
        if job.out is not None:
            return job.out
        with self._lock:
            kept = time.monotonic() - job.idle_since
            if job in self._idle and kept > KEEP_SECONDS:
                self._idle.remove(job)
                return "end"
        return "wait"

    def finished(self, number: int, training_seconds: float | None) -> None:
        """Record that a worker is done with its pack, or was asked to leave; its results are in the
        store."""
        job = self._jobs[number]
        job.out = None
        if not job.current.done():
            job.current.set_result(training_seconds)

    def has_workers(self, number: int, there: bool) -> None:
        """Record whether job `number` has its workers, or waits for them."""
        job, now = self._jobs[number], time.monotonic()
        with self._lock:
            if there:
                job.without_workers = None
            elif job.without_workers is None:
                job.without_workers = self._last_worker = now

    def waited(self) -> float:
        """Return the seconds for which there has been no worker while one was wanted; else 0."""
        now = time.monotonic()
        with self._lock:
            lasting = [job for job in self._jobs.values() if not job.ended.done()]
            since = [j.without_workers for j in lasting if j.without_workers is not None]
            if len(since) < len(lasting):
                self._last_worker = now
            return max(0.0, now - max(min(since, default=now), self._last_worker))

    def niceness(self) -> int:
        """Return the niceness of this process, like that of all that the cluster starts: 15 at
        Ray's default, 0 at normal priority."""
        return os.nice(0)

    def give_up(self, reason: str) -> None:
        """Stop waiting for workers: return packs without one, and accept no other."""
        with self._lock:
            self._closing, self._given_up = True, reason
            waiting = [job for job in self._jobs.values() if job.without_workers is not None]
            for job in waiting:
                if not job.current.done():
                    job.current.set_result(None)

    def refuse(self, reason: str) -> None:
        """End the study at once: return all packs without a result, and accept no other. Workers
        call it that cannot work on the store."""
        with self._lock:
            self._closing, self._given_up = True, self._given_up or reason
            for job in self._jobs.values():
                if not job.current.done():
                    job.current.set_result(None)

    def _start(self) -> _Job:
        job = _Job(len(self._jobs))
        self._jobs[job.number] = job
        me = ray.get_runtime_context().current_actor
        self._threads.submit(self._train, job, me)
        return job

    def _train(self, job: _Job, me: Any) -> None:
        try:
            self._trainer(job.number, me).fit()
        # Boundary of a job: any error that ended it is the reason why its pack failed.
        except Exception as error:
            job.ended.set_exception(error)
        else:
            job.ended.set_result(None)

    def _trainer(self, number: int, me: Any) -> Any:
        from pmlray.backends.ray.controllers import trainer_of

        train = train_sharded_packs if self._plan.workers > 1 else train_packs
        name = f"{self._name}-{number}"
        return trainer_of(self._plan, train, name, number, me)

    def close(self, seconds: float = 0.0) -> None:
        """End the workers, and wait for `seconds` at most until their jobs have ended."""
        self._closing = True
        jobs = list(self._jobs.values())
        for job in jobs:
            job.packs.put(None)
        # A job whose worker is still starting is not awaited: it has nothing to save.
        wait([job.ended for job in jobs if job.idle_since < math.inf], timeout=seconds)


def train_packs(config: dict[str, Any]) -> None:
    """Run the train loop of a worker: measure packs, storing each observation when it is done."""
    plan, workers = config["plan"], config["workers"]
    train_in_store(plan, workers, partial(_train_packs, plan, workers, config["number"]))


def _train_packs(plan: WorkerPlan, workers: Any, number: int) -> None:
    bound_waits(os.environ, plan.barriers)
    import torch

    from pmlray.backends.deepspeed.stepper import BACKEND, be_one_process, deepspeed_stepper
    from pmlray.backends.mlflow.system_metrics import node_sampler, sampled
    from pmlray.backends.ray.pack_worker import run_pack
    from pmlray.engine.calibrate import calibrate_pack
    from pmlray.engine.measure import measure_pack
    from pmlray.engine.model.base_model import KeptBase
    from pmlray.engine.model.prefix_store import node_store

    sampler, folder = node_sampler(), Path(plan.store)
    if not torch.cuda.is_available():
        torch.set_num_threads(plan.cpus)
    be_one_process()
    load_base = KeptBase()
    versions = {"ray": ray.__version__, **BACKEND}

    def measure(pack: Pack, store: FileStore, checkpoints: Checkpoints) -> float:
        tell = partial(put_live, folder)
        if pack.calibrates:
            shared = (deepspeed_stepper(), node_store(), load_base, tell)
            return calibrate_pack(plan.search, pack, folder, *shared)
        return measure_pack(
            plan.search,
            pack,
            store,
            store.adapters,
            deepspeed_stepper(),
            versions,
            checkpoints,
            node_store(),
            load_base,
            tell,
        )

    for pack in pack_stream(workers, number):
        if pack is None:
            continue
        with sampled(sampler, folder, pack.round):
            seconds = run_pack(plan.work(pack), partial(measure, pack))
        let_go_of_pack()
        ray.get(workers.finished.remote(number, seconds))


def _cause(error: BaseException) -> str:
    from ray.train import TrainingFailedError

    workers = getattr(error, "worker_failures", None)
    found = workers if isinstance(error, TrainingFailedError) and workers else None
    first = next(iter(found.values()), error) if found else error
    return str(first).strip()[-2000:]
