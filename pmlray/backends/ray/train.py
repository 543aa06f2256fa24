"""Packs on Ray Train: workers that drive the DeepSpeed engine, and the result of each pack."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pmlray.backends.ray.held_resources import describe_holders, free_groups, held_groups
from pmlray.backends.ray.pack_task import fail_missing
from pmlray.backends.ray.seen_store import SHARED_FOLDER_SECONDS
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.ray.worker_pool import PackOutcome, WarmWorkers
from pmlray.backends.store.attempts import AttemptLog, lost_seconds
from pmlray.backends.store.file_store import FileStore
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import ModelError, RunError
from pmlray.live_packs import Calibration, calibration_of, forget_live
from pmlray.types import Pack, PackResult, PackTimes

log = logging.getLogger(__name__)

# Part of the minute within which a search has to end; its report and its tracker take the rest.
LEAVE_SECONDS = 40.0
# Time for the end of workers: they learn at once that no pack is left; then Ray Train ends them.
CLOSE_SECONDS, HURRIED_SECONDS = 30.0, 5.0
# Longest time that a running actor takes to answer.
ANSWER_SECONDS = 10.0


def cpus_of(profile: ClusterProfile) -> int:
    """Return the number of CPU cores of one pack."""
    return profile.cpus_per_pack or os.cpu_count() or 1


def packs_at_once(profile: ClusterProfile) -> int:
    """Return the number of packs that train at once: the profile's, else one for each device there
    is."""
    if profile.concurrent_packs is not None:
        return profile.concurrent_packs
    kind, needed = "GPU", profile.gpus_per_pack
    if not needed:
        kind, needed = "CPU", max(1, cpus_of(profile) // profile.workers_per_pack)
    there = (node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
    return max(1, sum(int(amount // needed) for amount in there) // profile.workers_per_pack)


class RayTrainRunner:
    """PackRunner on the cluster that Ray is connected to, with workers that stay between packs.

    driver: generation of the driver's lease on the store; n_at_once: largest number of packs that
    run at the same time. It can be sent to other processes.
    """

    def __init__(
        self,
        search: PreparedSearch,
        store: Path,
        profile: ClusterProfile,
        driver: int,
        n_at_once: int = 1,
    ) -> None:
        self._store = store
        workers = profile.workers_per_pack
        cpus = max(1, cpus_of(profile) // workers)
        plan = WorkerPlan(
            search,
            str(store),
            profile.gpus_per_pack,
            cpus,
            driver,
            profile.checkpoint_seconds,
            workers,
        )
        actor = ray.remote(WarmWorkers).options(
            num_cpus=0,
            # On the head node, since a worker node may vanish.
            resources={"node:__internal_head__": 0.001},
            # Per pack, one call of `run` and one worker that asks for the next; some to spare.
            max_concurrency=4 * n_at_once + 4,
        )
        pool: Any = actor.remote(plan)
        self._workers = pool
        # Of the actor that reserves the workers' resources.
        self._actor_id: str = pool._actor_id.hex()
        self._wanted = plan.resources, workers

    def prepare(self, n_out: int) -> None:
        """Start workers, so that each of n_out packs has one ahead of its `run`."""
        self._workers.prepare.remote(n_out)

    def run(self, pack: Pack) -> PackResult:
        """Train the pack; runs without an observation come back as failed.

        A worker that dies is started again and resumes from the last checkpoint. RunError when the
        worker was asked to leave, or none could start: the pack is neither done nor failed.
        """
        started = time.perf_counter()
        outcome: PackOutcome = ray.get(self._workers.run.remote(pack))
        if outcome.training_seconds is None:
            asked = f"{pack.pack_id} was asked to leave; the same command continues it"
            raise RunError(outcome.reason or asked)
        if outcome.reason:
            log.error("%s failed: %s", pack.pack_id, outcome.reason)
        wall = time.perf_counter() - started
        times = PackTimes(pack.pack_id, pack.round, outcome.training_seconds, wall)
        return collect(FileStore(self._store), pack, times, outcome.reason)

    def calibrate(self, pack: Pack) -> Calibration:
        """Return the cost of a few steps of the pack, from the store if it is known. A worker that
        dies is started again. RunError where none of them completes the steps, ModelError where
        they refuse the base."""
        if (known := calibration_of(self._store)) is not None:
            return known
        outcome: PackOutcome = ray.get(self._workers.run.remote(pack))
        store = FileStore(self._store)
        shutil.rmtree(store.checkpoints(pack.pack_id), ignore_errors=True)
        forget_live(self._store, pack.pack_id)
        until = time.monotonic() + (SHARED_FOLDER_SECONDS if outcome.training_seconds else 0.0)
        while (found := calibration_of(self._store)) is None and time.monotonic() < until:
            # A shared folder does not announce a new file.
            time.sleep(1.0)
        if found is not None:
            return found
        if outcome.reason:
            raise RunError(outcome.reason)
        failures = [f for run in pack.runs for f in store.failures_of(run.run_key)]
        if failures and failures[-1].bad_base:
            raise ModelError(failures[-1].reason)
        why = failures[-1].reason if failures else "the worker was asked to leave"
        raise RunError(
            f"no worker could take the first steps, by which a search is planned: {why}; mend that"
            " and give the same command again"
        )

    def waited(self, seconds: float = ANSWER_SECONDS) -> float:
        """Return the seconds for which there has been no worker while one was wanted; else 0.

        GetTimeoutError when the actor that knows has not answered within `seconds`.
        """
        return ray.get(self._workers.waited.remote(), timeout=seconds)

    def niceness(self) -> int:
        """Return the niceness of processes that the cluster starts; 0: normal priority."""
        return ray.get(self._workers.niceness.remote(), timeout=ANSWER_SECONDS)

    def describe_shortage(self) -> str:
        """Describe the resources that a worker needs, and what holds them."""
        return describe_holders(*self._wanted, self._actor_id)

    def give_up(self, reason: str) -> None:
        """End the `run` of every pack without a worker, with this reason."""
        self._workers.give_up.remote(reason)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the workers, waiting for `seconds` at most, and free their resources."""
        held = held_groups(self._actor_id)
        try:
            ray.get(self._workers.close.remote(seconds), timeout=seconds + ANSWER_SECONDS)
        except RayError as error:
            log.warning("the workers did not end by themselves, and are killed: %s", error)
        # Only now, since a worker fails when it calls an actor that is gone.
        ray.kill(self._workers)
        if not free_groups(self._actor_id, seconds, held):
            log.warning("the cluster does not have back what the workers held")


def collect(store: FileStore, pack: Pack, times: PackTimes, reason: str) -> PackResult:
    """Return a pack's result from its store; store runs without one as failed, with `reason`.

    Its checkpoints are deleted, since nothing is left to do. times: with the lost gpu_seconds, if
    the pack was collected before.
    """
    folder = store.checkpoints(pack.pack_id)
    lost = lost_seconds(AttemptLog(folder).all())
    # Failures of runs themselves were stored by their worker.
    fail_missing(store, pack, reason or "no result", lost, infrastructure=True)
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
    forget_live(store.folder, pack.pack_id)
    lost += times.lost_gpu_seconds
    return PackResult(pack, done, failed, replace(times, lost_gpu_seconds=lost))


def await_workers(store: FileStore, pack: Pack) -> None:
    """Wait until a pack's worker that was asked to leave has left, for LEAVE_SECONDS at most."""
    until = time.monotonic() + LEAVE_SECONDS
    if not store.leases.await_free((run.run_key for run in pack.runs), until):
        log.warning("%s did not leave within %.0f s; it is killed", pack.pack_id, LEAVE_SECONDS)
