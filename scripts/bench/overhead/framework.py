"""What DeepSpeed and Ray Train cost of a step, beside the bare loop: one core, turns in one run.

    python scripts/bench/overhead/framework.py [--quick] [--json]

Three ways train the same pack in processes of their own and take turns: the bare loop, the loop
through DeepSpeed, and that in a worker of Ray Train, as a search runs it. Ray's processes live
through all turns, on the same core, so that what they do in the background meets all ways;
`ray_background` is the CPU time that they took, as a share of the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.bases.models import SMOLLM2, TINY
from scripts.bench.common.machine import machine
from scripts.bench.common.statistics import paired_ratio, spread
from scripts.bench.speed.pace import Child
from scripts.bench.speed.work import Work

WAYS = ("pmlray_bare", "pmlray", "pmlray_ray")
TICKS = os.sysconf("SC_CLK_TCK")


def measure(work: Work, repeats: int, block_seconds: float) -> dict[str, Any]:
    """One cell: seconds of a step by each way, and their ratios to the bare loop, by turns."""
    children: dict[str, Child] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for way in WAYS:
            children[way] = Child(way, work)
            if reason := children[way].not_installed:
                return {"status": "not installed", "reason": reason}
        warm = {way: child.block(3)["seconds"] / 3 for way, child in children.items()}
        steps = max(1, round(block_seconds / min(warm.values())))
        began, before = time.perf_counter(), _ray_cpu_seconds()
        for turn in range(repeats):
            # Who comes first changes, so that what drifts meets all alike.
            for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
                seconds[way].append(children[way].block(steps)["seconds"] / steps)
        wall, after = time.perf_counter() - began, _ray_cpu_seconds()
        for child in children.values():
            child.end()
    finally:
        for child in children.values():
            child.close()
    bare = seconds["pmlray_bare"]
    return {
        "status": "measured",
        "model": work.model,
        "task": work.task,
        "seq_len": work.seq_len,
        "lora_rank": work.lora_rank,
        "n_adapters": work.n_adapters,
        "dtype": work.dtype,
        "steps_a_turn": steps,
        "seconds_per_step": {way: spread(found) for way, found in seconds.items()},
        "over_bare": {way: paired_ratio(seconds[way], bare) for way in WAYS[1:]},
        "ray_background": (after - before) / wall,
    }


def _ray_cpu_seconds() -> float:
    """CPU time so far of this process's descendants that are Ray's, but for the worker itself."""
    parents, names, ticks = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = rest.split()
        pid = int(folder.name)
        parents[pid], names[pid] = int(fields[1]), head.partition("(")[2]
        ticks[pid] = int(fields[11]) + int(fields[12])

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    of_ray = ("ray", "gcs_server", "raylet")
    found = (
        pid
        for pid, name in names.items()
        if name.startswith(of_ray) and not name.startswith("ray::RayTrainWo") and is_ours(pid)
    )
    return sum(ticks[pid] for pid in found) / TICKS


def run(quick: bool) -> dict[str, Any]:
    """All that the script prints."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    model, repeats, block = (TINY, 3, 0.2) if quick else (SMOLLM2, 7, 4.0)
    cells = [
        measure(Work(model, "long_context", 50, 1, 16, n_adapters=n), repeats, block)
        for n in ((1,) if quick else (1, 8))
    ]
    versions = {name: version(name) for name in ("torch", "deepspeed", "ray")}
    found = machine()
    return {**found, "versions": found.get("versions", {}) | versions, "cores": 1, "cells": cells}


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="the tiny model, about a minute")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    found = run(chosen.quick)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for cell in found["cells"]:
        for way, ratio in cell.get("over_bare", {}).items():
            print(
                f"{cell['n_adapters']} adapters, {way}: {ratio['median']:.3f} of the bare step"
                f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
            )


if __name__ == "__main__":
    main()
