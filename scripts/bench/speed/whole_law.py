"""A whole job: the 24 points of one law by one way, from nothing to trained adapters.

    python -m scripts.bench.speed.whole_law WAY POINTS_JSON

pmlray trains all points in one process and one pack, where budgets share their trunk (recipe
`warmup_constant_decay`); every rival trains a process a point with its own linear decay. Nobody
ends a run early, and only pmlray's time has the points' final losses in it. A machine's speed
drifts by the hour, so the ways take turns: rivals point by point, pmlray's job before, after and in
between.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from pmlray.config.recipe import Recipe
from scripts.bench.speed.pace import ROOT, environment_of
from scripts.bench.speed.ways import way_named
from scripts.bench.speed.work import LEARNING_RATE, Dtype, Work

PACKED_JOBS = 4


@dataclass(frozen=True)
class LawGrid:
    """The points of a law: every length (tokens) at every rank and budget (steps)."""

    seq_lens: tuple[int, ...]
    lora_ranks: tuple[int, ...] = (1, 4, 16)
    budgets: tuple[int, ...] = (50, 100, 200, 400)


LAW = LawGrid((50, 500))
# Hours less where a CPU does not multiply bfloat16: 2 by five ways on two AVX2 cores.
QUICK_LAW = LawGrid((16, 50), budgets=(25, 50, 100, 200))


@dataclass(frozen=True)
class Job:
    """What one process trains, by which way, and its name among a law's jobs."""

    way: str
    name: str
    points: tuple[Work, ...]


class _Unpaced:
    def stepped(self, replayed: bool = False) -> None:
        """Go on."""


def law_points(model: str, grid: LawGrid, dtype: Dtype = "bfloat16") -> list[Work]:
    """Long contexts at every rank, length and budget of the grid."""
    return [
        Work(model, "long_context", seq_len, 1, lora_rank, dtype=dtype, train_steps=budget)
        for lora_rank in grid.lora_ranks
        for seq_len in grid.seq_lens
        for budget in grid.budgets
    ]


def law_jobs(points: Sequence[Work], rivals: Sequence[str]) -> list[Job]:
    """The processes of one law in their order: every rival's own, and pmlray's several times."""
    packed = sorted({round(i * len(points) / (PACKED_JOBS - 1)) for i in range(PACKED_JOBS)})
    jobs = []
    for i in range(len(points) + 1):
        if i in packed:
            jobs.append(Job("pmlray", f"job {packed.index(i)} of pmlray", tuple(points)))
        for rival in rivals if i < len(points) else ():
            jobs.append(Job(rival, f"point {i} by {rival}", (points[i],)))
    return jobs


def job_seconds(job: Job) -> float:
    """Wall time of a process from its start to its end, times the cores or the one GPU it has."""
    text = json.dumps([asdict(point) for point in job.points])
    command = [sys.executable, "-m", "scripts.bench.speed.whole_law", job.way, text]
    env = environment_of(job.way)
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return (time.perf_counter() - started) * devices()


def measured_laws(jobs: Sequence[Job], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """The whole law by each way: a rival's processes together, the median of pmlray's jobs."""
    found = []
    for way in dict.fromkeys(job.way for job in jobs):
        own = [spent for job, spent in zip(jobs, seconds, strict=True) if job.way == way]
        whole = median(own) if way == "pmlray" else sum(own)
        found.append({"way": way, "status": "measured", "gpu_seconds": whole, "jobs": own})
    return found


def estimated_law(
    way: str,
    points: Sequence[Work],
    start_seconds: float,
    step_seconds: Callable[[Work], float],
) -> dict[str, Any]:
    """The same from measured start-up and measured seconds an adapter-step, summed."""
    starts = 1 if way == "pmlray" else len(points)
    training = sum(step_seconds(point) * point.train_steps for point in points)
    seconds = starts * start_seconds + training
    return {"way": way, "status": "estimated", "gpu_seconds": seconds * devices()}


def devices() -> int:
    """GPUs in use, else cores."""
    return 1 if torch.cuda.is_available() else torch.get_num_threads()


def main(way: str, points: Sequence[Work]) -> None:
    """Train these points in this process."""
    if way != "pmlray":
        for point in points:
            way_named(way)(point, _Unpaced())
        return
    from pmlray.backends.deepspeed.stepper import be_one_process, deepspeed_stepper
    from scripts.bench.speed.packed import train_packed

    be_one_process()
    longest = replace(points[0], seq_len=max(point.seq_len for point in points))
    recipe = Recipe(learning_rate=LEARNING_RATE, stop_loss=0.0, stop_gain=0.0)
    train_packed(longest, points, recipe, _Unpaced(), deepspeed_stepper())


if __name__ == "__main__":
    main(sys.argv[1], [Work(**point) for point in json.loads(sys.argv[2])])
