"""One pack as one Ray Train job of several workers, which share one base between them (ZeRO-3).

A worker that is lost ends the job's attempt; the next one goes on from the last checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pmlray.backends.file_store import FileStore
from pmlray.backends.pack_work import PackWork
from pmlray.config.prepared import PreparedSearch
from pmlray.types import Pack

ATTEMPTS_AFTER_A_LOSS = 3


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker needs to measure packs; `store` is a folder that every node sees.

    Each of a pack's `workers` has `gpus` GPUs; 0: it trains on `cpus` cores. `driver`: generation
    of the lease of the driver that wants the packs; `checkpoint_seconds`: between two checkpoints.
    """

    search: PreparedSearch
    store: str
    gpus: int
    cpus: int
    driver: int
    checkpoint_seconds: float
    workers: int = 1

    def work(self, pack: Pack) -> PackWork:
        """A pack for a worker that trains it alone."""
        return PackWork(
            self.search,
            pack,
            self.store,
            self.cpus,
            self.driver,
            self.checkpoint_seconds,
            devices=self.gpus or self.cpus,
        )

    def scaling(self) -> ScalingConfig:
        """The devices of one pack."""
        return ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.gpus > 0,
            resources_per_worker={"GPU": self.gpus} if self.gpus else {"CPU": self.cpus},
        )

    @property
    def storage(self) -> str:
        """Ray's own folder, one a Ray version: another version's snapshot cannot be read."""
        return str(Path(self.store) / "ray" / ray.__version__)


def fit_sharded(plan: WorkerPlan, pack: Pack) -> float:
    """Train a pack; returns wall seconds inside optimiser steps. Ray's error when it fails."""
    trainer = TorchTrainer(
        train_sharded,
        train_loop_config={"plan": plan, "pack": pack},
        scaling_config=plan.scaling(),
        run_config=RunConfig(
            name=pack.pack_id,
            storage_path=plan.storage,
            failure_config=FailureConfig(max_failures=ATTEMPTS_AFTER_A_LOSS),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    return float(trainer.fit().return_value or 0.0)


def train_sharded(config: dict[str, Any]) -> float:
    """The train loop of every worker of a pack; returns wall seconds inside optimiser steps."""
    import torch
    from transformers import AutoTokenizer

    from pmlray.backends.mlflow_system import node_sampler, sampled
    from pmlray.backends.zero3 import measure_sharded
    from pmlray.engine.base_model import PLAIN_TOKENIZER

    plan: WorkerPlan = config["plan"]
    pack: Pack = config["pack"]
    if not torch.cuda.is_available():
        torch.set_num_threads(plan.cpus)
    spec, folder = plan.search.spec, plan.search.source.folder
    pinned = {} if folder is not None else {"revision": spec.model.revision}
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder or spec.model.id), **PLAIN_TOKENIZER, **pinned
    )
    store = FileStore(Path(plan.store))
    # One of a node's workers tells for all.
    first_here = ray.train.get_context().get_local_rank() == 0
    sampler = node_sampler() if first_here else None

    def keep(save: Callable[[str], None]) -> None:
        with tempfile.TemporaryDirectory() as own:
            save(own)
            ray.train.report(
                {"pack": pack.pack_id}, checkpoint=ray.train.Checkpoint.from_directory(own)
            )

    last = ray.train.get_checkpoint()
    with (
        sampled(sampler, store.folder, pack.round),
        nullcontext(None) if last is None else last.as_directory() as resume_from,
    ):
        return measure_sharded(
            plan.search,
            pack,
            # All ranks see the same: what another pack measures is none of this one's runs.
            lambda key: store.observation(key) is not None,
            store.put,
            store.adapters,
            tokenizer,
            {"ray": ray.__version__},
            resume_from,
            keep,
        )
