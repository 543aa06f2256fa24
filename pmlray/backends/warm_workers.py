"""Ray Train workers that stay: started once for a device, they train one pack after another.

A Ray Train job lasts as long as its train function. Here the function asks for the next pack when
it is done with one, so that the job's start, the imports and the base's load are paid once a device
and not once a pack. A worker that is lost is started again, and goes on with the pack that it had.
Where a base is sharded, a job has several workers, and their rank 0 speaks for all of them.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ray

from pmlray.backends.file_store import FileStore
from pmlray.backends.ray_sharded import train_sharded_packs
from pmlray.backends.ray_workers import WorkerPlan, let_go_of_pack, packs_of
from pmlray.engine.thread_barriers import bound_waits
from pmlray.live_packs import put_live
from pmlray.types import Pack

# Neither torch nor Ray Train is imported here: seconds of start-up to the driver and to the trials,
# which do not need them.
if TYPE_CHECKING:
    from pmlray.engine.checkpoints import Checkpoints

# A worker without a pack gives its device back after so long.
KEEP_SECONDS = 60.0
POLL_SECONDS = 5.0
# Nodes may vanish again and again; a pack that gets nowhere is given up by its worker.
MOST_LOST_WORKERS = 1000


@dataclass(frozen=True, slots=True)
class PackOutcome:
    """Wall seconds inside optimiser steps (None: its worker was asked to leave), and the reason why
    it failed ("" where it did not)."""

    training_seconds: float | None
    reason: str = ""


@dataclass
class _Job:
    """One Ray Train job: its packs to do, and the pack that it is at, `out` at its worker."""

    number: int
    packs: queue.Queue[Pack] = field(default_factory=queue.Queue)
    out: Pack | None = None
    current: Future[float | None] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)
    # Until its worker asks for a pack it is starting, however long that takes.
    idle_since: float = math.inf


class WarmWorkers:
    """Runs packs on Ray Train jobs, at most one job for each pack that is out. A Ray actor:
    `prepare` is called by who has chosen a pack, `run` by whoever has one, `next_pack` and
    `finished` by the workers."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._plan, self._lock = plan, threading.Lock()
        self._jobs: dict[int, _Job] = {}
        self._idle: list[_Job] = []
        self._n_at_work = 0
        self._closing = False
        # Ray Train looks in the folder of a job's name for what an earlier one left there.
        self._name = f"workers-{uuid4().hex[:12]}"
        # Ray Train reads both in this process, and passes them on. It notices a worker that has
        # ended only when it polls, which is every 2 s; and it would keep a process for warnings
        # that a node is about to go, which nobody asks for here.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        self._threads = ThreadPoolExecutor(thread_name_prefix="ray-train")

    def prepare(self, n_out: int) -> None:
        """Have a worker for each of n_out packs, starting some ahead of their `run`."""
        with self._lock:
            for _ in range(n_out - len(self._idle) - self._n_at_work):
                self._idle.append(self._start())

    def run(self, pack: Pack) -> PackOutcome:
        """Train a pack on a worker that is idle, else on a new one."""
        with self._lock:
            job = self._idle.pop() if self._idle else self._start()
            job.current = Future()
            job.packs.put(pack)
            self._n_at_work += 1
        either: list[Future[Any]] = [job.current, job.ended]
        wait(either, return_when=FIRST_COMPLETED)
        with self._lock:
            self._n_at_work -= 1
            if job.current.done():
                job.idle_since = time.monotonic()
                self._idle.append(job)
        if job.current.done():
            return PackOutcome(job.current.result())
        error = job.ended.exception()
        reason = "its Ray Train worker ended" if error is None else _cause(error)
        return PackOutcome(0.0, reason)

    def next_pack(self, number: int) -> Pack | str:
        """A worker's next pack; "wait" when there is none yet, "end" when none will come. One that
        comes back without having finished its pack was lost with it."""
        job = self._jobs[number]
        if job.out is not None:
            return job.out
        job.idle_since = min(job.idle_since, time.monotonic())
        try:
            job.out = job.packs.get(timeout=POLL_SECONDS)
            return job.out
        except queue.Empty:
            pass
        with self._lock:
            kept = time.monotonic() - job.idle_since
            if job in self._idle and (self._closing or kept > KEEP_SECONDS):
                self._idle.remove(job)
                return "end"
        return "wait"

    def finished(self, number: int, training_seconds: float | None) -> None:
        """A worker is done with its pack, or was asked to leave; what it measured is in the
        store."""
        job = self._jobs[number]
        job.out = None
        job.current.set_result(training_seconds)

    def _start(self) -> _Job:
        job = _Job(len(self._jobs))
        self._jobs[job.number] = job
        me = ray.get_runtime_context().current_actor
        self._threads.submit(self._train, job, me)
        return job

    def _train(self, job: _Job, me: Any) -> None:
        try:
            self._trainer(job, me).fit()
            job.ended.set_result(None)
        # A job's boundary: whatever ended it is the reason why its pack failed.
        except Exception as error:
            job.ended.set_exception(error)

    def _trainer(self, job: _Job, me: Any) -> Any:
        from ray.train import FailureConfig, RunConfig

        plan = self._plan
        options: dict[str, Any] = {
            "train_loop_config": {"plan": plan, "workers": me, "number": job.number},
            "scaling_config": plan.scaling(),
            "run_config": RunConfig(
                name=f"{self._name}-{job.number}",
                # Ray's own checkpoints are not used: of them the newest alone can be had, whole or
                # not.
                storage_path=plan.storage,
                failure_config=FailureConfig(max_failures=MOST_LOST_WORKERS),
                worker_runtime_env={"env_vars": plan.environment},
            ),
        }
        if plan.workers > 1:
            from ray.train.torch import TorchTrainer

            return TorchTrainer(train_sharded_packs, **options)
        # A worker alone makes its group of one itself: TorchTrainer's would load torch, for
        # seconds, in this process and in Ray Train's controller, one after the other.
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return DataParallelTrainer(train_packs, **options)

    def close(self) -> None:
        """Let the workers end as soon as they are idle."""
        self._closing = True


def train_packs(config: dict[str, Any]) -> None:
    """The train loop of a worker: measures packs, stores each observation as it is done."""
    plan: WorkerPlan = config["plan"]
    bound_waits(os.environ, plan.barriers)
    import torch

    from pmlray.backends.deepspeed import BACKEND, be_one_process, deepspeed_stepper
    from pmlray.backends.mlflow_system import node_sampler, sampled
    from pmlray.backends.pack_worker import run_pack
    from pmlray.engine.base_model import KeptBase
    from pmlray.engine.calibrate import calibrate_pack
    from pmlray.engine.measure import measure_pack
    from pmlray.engine.prefix_store import node_store

    workers, number = config["workers"], config["number"]
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

    for pack in packs_of(workers, number):
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
