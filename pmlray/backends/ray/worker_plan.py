"""Settings of a Ray Train job's workers, and the stream of packs that they measure."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from pmlray.backends.ray.niceness import NICENESS
from pmlray.backends.ray.pack_task import PackWork
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR, give_back_freed
from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN, chosen
from pmlray.types import Pack

if TYPE_CHECKING:
    from ray.train import ScalingConfig

# Wait before asking again an actor that is temporarily unavailable.
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerPlan:
    """Settings of the workers of a job; `store` is a folder that is visible to every node.

    Each of a pack's `workers` has `gpus` GPUs; 0: it trains on `cpus` cores. `driver`: generation
    of the lease of the driver that requests the packs; `checkpoint_seconds`: between two
    checkpoints. `barriers`: environment variables that set how threads wait for each other, as the
    driver has them.
    """

    search: PreparedSearch
    store: str
    gpus: int
    cpus: int
    driver: int
    checkpoint_seconds: float
    workers: int = 1
    barriers: Mapping[str, str] = field(default_factory=lambda: chosen(os.environ) or BOUNDED_SPIN)

    def work(self, pack: Pack) -> PackWork:
        """Return a pack as input for the worker, or the workers, that train it."""
        return PackWork(
            self.search,
            pack,
            self.store,
            self.cpus,
            self.driver,
            self.checkpoint_seconds,
            devices=(self.gpus or 1) * self.workers,
            sharded=self.workers > 1,
        )

    def scaling(self) -> ScalingConfig:
        """Return the devices of one pack as Ray Train's scaling config."""
        from ray.train import ScalingConfig

        return ScalingConfig(
            num_workers=self.workers,
            use_gpu=self.gpus > 0,
            resources_per_worker=self.resources,
        )

    @property
    def resources(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that a worker starts with; to be read in a process of the
        cluster."""
        # By default Ray starts a worker at niceness 15: beside one busy process of normal priority
        # it got 14 % of a core.
        started = {NICENESS: os.environ.get(NICENESS, "0")}
        if not self.gpus:
            started |= CPU_ALLOCATOR
        if self.workers > 1:
            # Ray Train loads torch into these workers before it calls the train function, in which
            # a single worker would still bound its waits. The node that reads this decides for all.
            started |= chosen(os.environ) or self.barriers
        return started

    @property
    def storage(self) -> str:
        """Ray's own folder, one per Ray version: another version's snapshot cannot be read."""
        return str(Path(self.store) / "ray" / ray.__version__)


def pack_stream(workers: Any, number: int) -> Iterator[Pack | None]:
    """Yield the packs of job `number` from the actor `workers`; None repeatedly while there is
    none. Ends when the actor says so, or is dead."""
    while True:
        try:
            pack = cast("Pack | str", ray.get(workers.next_pack.remote(number)))
        except ActorUnavailableError:
            time.sleep(RETRY_SECONDS)
            continue
        except ActorDiedError:
            return
        if pack == "end":
            return
        yield None if isinstance(pack, str) else pack


def let_go_of_pack() -> None:
    """Free a pack's memory, which would count in the next one's peak."""
    import torch

    gc.collect()
    give_back_freed()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
