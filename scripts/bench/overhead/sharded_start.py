"""Seconds from a sharded pack's start to its first step, on a new job and on workers that stay.

    python scripts/bench/overhead/sharded_start.py [--quick] [--json]

Packs of one run each, over two CPU workers (ZeRO-3), one after another. `first` is the pack for
which Ray Train starts; `next` those that come after it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import ray
import ray.train.torch

from pmlray.backends.ray import worker_pool
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.store.file_store import FileStore
from pmlray.config.bases.models import SMOLLM2, TINY
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.types import DesignPoint, Pack
from scripts.bench.common.machine import machine
from scripts.bench.common.statistics import spread

LAYERS = {TINY: 1, SMOLLM2: 15}
PACKS = 3
STAMPS = "first_steps.txt"
SEARCH = """\
name: sharded-start
task: {{kind: phonebook, prompt_format: plain}}
model: {{id: {model}, dtype: float32}}
probe: {{placement: down_proj, layer: {layer}}}
space: {{lora_rank: [4], seq_len: [50], train_steps: [2]}}
design: {{n_initial: 2}}
evaluate: {{generate_max_tokens: 0, control_tokens: 0}}
budget: {{gpu_seconds: 1000}}
"""


class Workers(worker_pool.WarmWorkers):
    """Workers that note when a run takes its first step."""

    def run(self, pack: Pack) -> worker_pool.PackOutcome:
        """Train a pack."""
        trainer: Any = ray.train.torch.TorchTrainer
        if not isinstance(trainer, partial):
            setattr(ray.train.torch, "TorchTrainer", partial(_trainer, trainer))  # noqa: B010
        return super().run(pack)

    def close(self) -> None:
        """Wait until Ray Train has ended."""
        super().close()
        for job in self._jobs.values():
            job.ended.result(timeout=60)


def _trainer(make: Any, loop: Any, **options: Any) -> Any:
    return make(partial(_stamped, loop), **options)


def _stamped(loop: Any, config: dict[str, Any]) -> None:
    from pmlray.backends.deepspeed import zero3_run

    take = zero3_run.ShardedRun._take_step

    def take_step(run: Any) -> None:
        if run.step == 0 and run._rank == 0:
            with (Path(config["plan"].store) / STAMPS).open("a") as file:
                file.write(f"{time.time()}\n")
        take(run)

    zero3_run.ShardedRun._take_step = take_step
    loop(config)


def one_job(search: PreparedSearch, folder: Path) -> list[float]:
    """Seconds to the first step of each of PACKS packs in a row."""
    store, began = FileStore(folder), []
    with store.driver_lock() as driver:
        plan = WorkerPlan(search, str(folder), 0, 1, driver.generation, 60.0, 2)
        workers: Any = ray.remote(Workers).options(num_cpus=0, max_concurrency=8).remote(plan)
        for seed in range(PACKS):
            run = search.plan_run(DesignPoint(4, 50, 2), "sft", 0, seed, "law")
            began.append(time.time())
            outcome = ray.get(workers.run.remote(Pack(seed, (run,))))
            if outcome.reason:
                raise RuntimeError(outcome.reason)
        ray.get(workers.close.remote())
        ray.kill(workers)
    stamps = [float(line) for line in (folder / STAMPS).read_text().split()]
    return [stamp - start for stamp, start in zip(stamps, began, strict=True)]


def measure(model: str, repeats: int, folder: Path) -> dict[str, Any]:
    """One model's seconds to the first step, over `repeats` jobs."""
    spec = folder / f"{model}.yaml"
    spec.write_text(SEARCH.format(model=model, layer=LAYERS[model]))
    search = prepare_search(spec)
    jobs = [one_job(search, folder / f"{model}-{i}") for i in range(repeats)]
    return {
        "model": model,
        "first": spread([job[0] for job in jobs]),
        "next": spread([seconds for job in jobs for seconds in job[1:]]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny model, once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", choices=sorted(LAYERS), help="this one alone")
    arguments = parser.parse_args()
    models = [TINY] if arguments.quick else [arguments.model] if arguments.model else list(LAYERS)
    with tempfile.TemporaryDirectory() as folder:
        ray.init("local", num_cpus=2, log_to_driver=False)
        cells = [measure(m, 1 if arguments.quick else 3, Path(folder)) for m in models]
        ray.shutdown()
    if arguments.json:
        versions = {name: version(name) for name in ("ray", "torch", "deepspeed")}
        print(json.dumps({**machine(), "framework_versions": versions, "cells": cells}, indent=1))
        return
    for cell in cells:
        for which in ("first", "next"):
            s = cell[which]
            print(
                f"{cell['model']:18} {which:6} {s['median']:6.2f} s"
                f" ({s['low']:.2f} to {s['high']:.2f}, n {s['n']})"
            )


if __name__ == "__main__":
    main()
