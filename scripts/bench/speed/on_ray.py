"""The packed engine as a search runs it whole: DeepSpeed in a worker of Ray Train."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

from scripts.bench.speed.pace import ROOT, Pace, Pacer
from scripts.bench.speed.work import Weights, Work, work_from_json


def pmlray_ray(work: Work, pace: Pace) -> Weights:
    """Train in a Ray Train worker, which takes its orders and reports through this process.

    Ray's own processes are this one's children, and run wherever this one may.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    assert isinstance(pace, Pacer)
    with tempfile.TemporaryDirectory() as folder:
        orders, reports = Path(folder) / "orders", Path(folder) / "reports"
        os.mkfifo(orders)
        os.mkfifo(reports)
        for source, target in (
            (lambda: sys.stdin, lambda: orders.open("w")),
            (lambda: reports.open(), lambda: pace.reports),
        ):
            threading.Thread(target=_copy_lines, args=(source, target), daemon=True).start()
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        try:
            DataParallelTrainer(
                _train,
                train_loop_config={
                    "work": work.to_json(),
                    "orders": str(orders),
                    "reports": str(reports),
                    "spawned": pace.spawned,
                },
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(name="speed", storage_path=folder),
            ).fit()
        finally:
            ray.shutdown()
    # The worker had said all there is.
    os._exit(0)


def _train(config: dict[str, Any]) -> None:
    import torch

    from scripts.bench.speed.packed import pmlray

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with open(config["orders"]) as orders, open(config["reports"], "w") as reports:
        pacer = Pacer(orders, reports, config["spawned"])
        pacer.run(lambda: pmlray(work_from_json(config["work"]), pacer))


def _copy_lines(source: Any, target: Any) -> None:
    read: TextIO = source()
    written: TextIO = target()
    for line in read:
        written.write(line)
        written.flush()
