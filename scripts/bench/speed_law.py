"""A whole job: the 24 points of one law by one way, from nothing to trained adapters.

    python -m scripts.bench.speed_law WAY POINTS_JSON

pmlray trains all points in one process and one pack, where budgets share their trunk (recipe
`warmup_constant_decay`); every rival trains a process a point with its own linear decay. Nobody
ends a run early, and only pmlray's time has the points' final losses in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from pmlray.config.recipe import Recipe
from scripts.bench.speed_pace import ROOT, environment_of, one_process
from scripts.bench.speed_ways import way_named
from scripts.bench.speed_work import LEARNING_RATE, Work

LAW_RANKS, LAW_STEPS = (1, 4, 16), (50, 100, 200, 400)
MEASURED_WAYS = ("pmlray", "authors", "peft_trainer")


class _Unpaced:
    def stepped(self, replayed: bool = False) -> None:
        """Go on."""


def law_points(model: str, lengths: Sequence[int], ranks: Sequence[int]) -> list[Work]:
    """Long contexts at every rank, length and budget."""
    return [
        Work(model, "long_context", length, 1, rank, train_steps=steps)
        for rank in ranks
        for length in lengths
        for steps in LAW_STEPS
    ]


def measured_law(way: str, points: Sequence[Work]) -> dict[str, Any]:
    """Wall time of the whole job, times the cores or the one GPU that it has."""
    jobs = [list(points)] if way == "pmlray" else [[point] for point in points]
    started = time.perf_counter()
    for job in jobs:
        text = json.dumps([asdict(point) for point in job])
        command = [sys.executable, "-m", "scripts.bench.speed_law", way, text]
        subprocess.run(command, cwd=ROOT, env=environment_of(way), check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return {"way": way, "status": "measured", "gpu_seconds": seconds * devices()}


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
    from pmlray.backends.deepspeed import deepspeed_stepper
    from scripts.bench.speed_packed import train_packed

    one_process()
    longest = replace(points[0], seq_len=max(point.seq_len for point in points))
    recipe = Recipe(learning_rate=LEARNING_RATE, stop_loss=0.0, stop_gain=0.0)
    train_packed(longest, points, recipe, _Unpaced(), deepspeed_stepper())


if __name__ == "__main__":
    main(sys.argv[1], [Work(**point) for point in json.loads(sys.argv[2])])
