"""One pack as one Ray Train job: a TorchTrainer whose worker drives the DeepSpeed engine."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from pmlray.backends.file_store import FileStore
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared import PreparedSearch
from pmlray.types import FailedRun, Pack, PackResult, PackTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackWork:
    """What a worker needs to measure a pack; `store` is a folder that every node sees."""

    search: PreparedSearch
    pack: Pack
    store: str
    cpus: int


def train_pack_on_worker(config: dict[str, Any]) -> float:
    """The train loop of a worker: measures the pack, stores each observation as it is done.

    Returns wall seconds inside optimiser steps.
    """
    import torch

    from pmlray.backends.deepspeed import BACKEND, deepspeed_stepper
    from pmlray.engine.measure import measure_pack
    from pmlray.engine.prefix_store import node_store

    work: PackWork = config["work"]
    if not torch.cuda.is_available():
        torch.set_num_threads(work.cpus)
    store = FileStore(Path(work.store))
    versions = {"ray": ray.__version__, **BACKEND}
    return measure_pack(
        work.search,
        work.pack,
        store,
        store.adapters,
        deepspeed_stepper(),
        versions,
        prefix_store=node_store(),
    )


def cpus_of(profile: ClusterProfile) -> int:
    """CPU cores of one pack's worker."""
    return profile.cpus_per_pack or os.cpu_count() or 1


def packs_at_once(profile: ClusterProfile) -> int:
    """How many packs train at once: what the profile says, else one for each device there is."""
    if profile.concurrent_packs is not None:
        return profile.concurrent_packs
    kind, needed = ("GPU", profile.gpus_per_pack) if profile.gpus_per_pack else (
        "CPU", cpus_of(profile)
    )  # fmt: skip
    there = (node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
    return max(1, sum(int(amount // needed) for amount in there))


class RayTrainRunner:
    """A PackRunner: runs each pack as a Ray Train job on the cluster that Ray is connected to."""

    def __init__(self, search: PreparedSearch, store: Path, profile: ClusterProfile) -> None:
        self._search, self._store, self._profile = search, store, profile

    def run(self, pack: Pack) -> PackResult:
        """Train the pack; runs without an observation come back as failed."""
        started = time.perf_counter()
        gpus = self._profile.gpus_per_pack
        cpus = cpus_of(self._profile)
        work = PackWork(self._search, pack, str(self._store), cpus)
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
                # Its own folder a Ray version: another version's snapshot cannot be read.
                storage_path=str(self._store / "ray" / ray.__version__),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        reason, training_seconds = "", 0.0
        try:
            training_seconds = float(trainer.fit().return_value or 0.0)
        except TrainingFailedError as error:
            reason = _cause(error)
            log.error("%s failed: %s", pack.pack_id, reason)
        wall = time.perf_counter() - started
        times = PackTimes(pack.pack_id, pack.round, training_seconds, wall)
        return collect(FileStore(self._store), pack, times, reason)


def collect(store: FileStore, pack: Pack, times: PackTimes, reason: str) -> PackResult:
    """A pack's result from its store; runs that left nothing are stored as failed with `reason`."""
    keys = {run.run_key for run in pack.runs}
    done = tuple(o for o in store.observations() if o.run_key in keys)
    failed = {f.run_key: f for f in store.failures() if f.run_key in keys and f.round == pack.round}
    measured = {o.run_key for o in done}
    for place, run in enumerate(pack.runs):
        if run.run_key not in measured and run.run_key not in failed:
            failure = FailedRun(
                run.run_key, run.point, pack.round, place, reason or "no result", 0.0
            )
            store.put_failure(failure)
            failed[run.run_key] = failure
    return PackResult(pack, done, tuple(failed.values()), times)


def _cause(error: TrainingFailedError) -> str:
    workers = getattr(error, "worker_failures", None)
    first = next(iter(workers.values()), error) if workers else error
    return str(first).strip()[-2000:]
