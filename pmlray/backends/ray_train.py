"""One pack as one Ray Train job: a TorchTrainer whose worker drives the DeepSpeed engine."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from pmlray.backends.attempts import AttemptLog, lost_seconds
from pmlray.backends.file_store import FileStore
from pmlray.backends.pack_work import PackWork, fail_missing
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared import PreparedSearch
from pmlray.errors import RunError
from pmlray.types import Pack, PackResult, PackTimes

if TYPE_CHECKING:
    from pmlray.engine.checkpoints import Checkpoints

log = logging.getLogger(__name__)


# Of the minute within which a search has to leave; its report and its tracker take the rest.
LEAVE_SECONDS = 40.0
# Nodes may vanish again and again; a pack that gets nowhere is given up by its worker.
MOST_LOST_WORKERS = 1000


def train_pack_on_worker(config: dict[str, Any]) -> float | None:
    """The train loop of a worker: measures the pack, stores each observation as it is done.

    Returns wall seconds inside optimiser steps, None where it was asked to leave.
    """
    import torch

    from pmlray.backends.deepspeed import BACKEND, deepspeed_stepper
    from pmlray.backends.pack_worker import run_pack
    from pmlray.engine.measure import measure_pack

    work: PackWork = config["work"]
    if not torch.cuda.is_available():
        torch.set_num_threads(work.cpus)
    versions = {"ray": ray.__version__, **BACKEND}

    def measure(store: FileStore, checkpoints: Checkpoints) -> float:
        return measure_pack(
            work.search,
            work.pack,
            store,
            store.adapters,
            deepspeed_stepper(),
            versions,
            checkpoints,
        )

    return run_pack(work, measure)


def cpus_of(profile: ClusterProfile) -> int:
    """CPU cores of one pack's worker."""
    return profile.cpus_per_pack or os.cpu_count() or 1


class RayTrainRunner:
    """A PackRunner: runs each pack as a Ray Train job on the cluster that Ray is connected to.

    driver: generation of the lease on the store under which it does so.
    """

    def __init__(
        self, search: PreparedSearch, store: Path, profile: ClusterProfile, driver: int
    ) -> None:
        self._search, self._store, self._profile = search, store, profile
        self._driver = driver

    def run(self, pack: Pack) -> PackResult:
        """Train the pack; runs without an observation come back as failed.

        A worker that dies is started again and goes on from the last checkpoint. RunError when the
        worker was asked to leave: the pack is neither done nor failed.
        """
        started = time.perf_counter()
        gpus = self._profile.gpus_per_pack
        cpus = cpus_of(self._profile)
        work = PackWork(
            self._search,
            pack,
            str(self._store),
            cpus,
            self._driver,
            self._profile.checkpoint_seconds,
            devices=gpus or cpus,
        )
        trainer = TorchTrainer(
            train_pack_on_worker,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(
                num_workers=1,
                use_gpu=gpus > 0,
                resources_per_worker={"GPU": gpus} if gpus else {"CPU": cpus},
            ),
            run_config=RunConfig(
                name=pack.pack_id,
                # Its own folder a Ray version: another version's snapshot cannot be read. Ray's own
                # checkpoints are not used: of them the newest alone can be had, whole or not.
                storage_path=str(self._store / "ray" / ray.__version__),
                failure_config=FailureConfig(max_failures=MOST_LOST_WORKERS),
            ),
        )
        reason, training_seconds = "", 0.0
        try:
            training_seconds = trainer.fit().return_value
        except TrainingFailedError as error:
            reason = _cause(error)
            log.error("%s failed: %s", pack.pack_id, reason)
        if training_seconds is None:
            raise RunError(f"{pack.pack_id} was asked to leave; the same command continues it")
        wall = time.perf_counter() - started
        times = PackTimes(pack.pack_id, pack.round, float(training_seconds), wall)
        return collect(FileStore(self._store), pack, times, reason)


def collect(store: FileStore, pack: Pack, times: PackTimes, reason: str) -> PackResult:
    """A pack's result from its store; runs that left nothing are stored as failed with `reason`.

    Its checkpoints go: nothing of it is left to do.
    """
    folder = store.checkpoints(pack.pack_id)
    lost = lost_seconds(AttemptLog(folder).all())
    fail_missing(store, pack, reason or "no result", lost)
    found = (store.observation(run.run_key) for run in pack.runs)
    done = tuple(o for o in found if o is not None)
    measured = {o.run_key for o in done}
    failed = tuple(
        failure
        for run in pack.runs
        for failure in store.failures_of(run.run_key)
        if failure.round == pack.round and run.run_key not in measured
    )
    shutil.rmtree(folder, ignore_errors=True)
    return PackResult(pack, done, failed, replace(times, lost_gpu_seconds=lost))


def await_workers(store: FileStore, pack: Pack) -> None:
    """Wait until a pack's worker, which was asked to leave, has left, for LEAVE_SECONDS at most."""
    until = time.monotonic() + LEAVE_SECONDS
    if not store.leases.await_free((run.run_key for run in pack.runs), until):
        log.warning("%s did not leave within %.0f s; it is killed", pack.pack_id, LEAVE_SECONDS)


def _cause(error: TrainingFailedError) -> str:
    workers = getattr(error, "worker_failures", None)
    first = next(iter(workers.values()), error) if workers else error
    return str(first).strip()[-2000:]
