"""What training threads cost that wait for each other: spinning, or asleep, alone or with company.

    python scripts/bench/overhead/barriers.py [--quick] [--json]

One pack, trained by the bare loop in a process for each setting of GNU OpenMP's environment; the
processes take turns, so that what the machine does meanwhile meets all alike. Per setting: wall and
CPU seconds of a step, first with nothing else started, then beside two processes of normal priority
that keep two cores busy.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.bases.models import SMOLLM2, TINY
from scripts.bench.common.machine import machine
from scripts.bench.common.statistics import paired_ratio, spread
from scripts.bench.speed.pace import Child
from scripts.bench.speed.work import Dtype, Work

# Whoever started this may have set them.
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
NEIGHBOURS = 2


def settings(spins: Sequence[int]) -> dict[str, dict[str, str]]:
    """The environments to compare, by name."""
    bounded = {f"spin {n}": {"GOMP_SPINCOUNT": str(n)} for n in spins}
    return {"default": {}, **bounded, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}


@contextmanager
def company(n: int) -> Iterator[None]:
    """n processes that each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(work: Work, spins: Sequence[int], turns: int, steps: int) -> dict[str, Any]:
    """One pack by every setting, alone and beside the neighbours."""
    children: dict[str, Child] = {}
    try:
        for name, environment in settings(spins).items():
            children[name] = Child("pmlray_bare", work, environment)
            children[name].block(3)
        found = {"alone": _turns(children, turns, steps)}
        with company(NEIGHBOURS):
            found["busy"] = _turns(children, turns, steps)
        for child in children.values():
            child.end()
    finally:
        for child in children.values():
            child.close()
    return {
        "model": work.model, "dtype": work.dtype, "n_adapters": work.n_adapters,
        "seq_len": work.seq_len, "lora_rank": work.lora_rank, "turns": turns, "steps_a_turn": steps,
        **found,
    }  # fmt: skip


def _turns(children: dict[str, Child], turns: int, steps: int) -> dict[str, Any]:
    names = list(children)
    wall: dict[str, list[float]] = {name: [] for name in names}
    used: dict[str, list[float]] = {name: [] for name in names}
    before = os.getloadavg()[0]
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            report = children[name].block(steps)
            wall[name].append(report["seconds"] / steps)
            used[name].append(report["cpu_seconds"] / steps)
            print(turn, name, wall[name][-1], used[name][-1], file=sys.stderr)
    return {
        "load": [before, os.getloadavg()[0]],
        "settings": {
            name: {
                "wall_seconds": spread(wall[name]),
                "cpu_seconds": spread(used[name]),
                "wall_over_default": paired_ratio(wall[name], wall["default"]),
                "cpu_over_default": paired_ratio(used[name], used["default"]),
            }
            for name in names
        },
    }


def run(
    quick: bool, dtypes: Sequence[Dtype], spins: Sequence[int], turns: int, steps: int
) -> dict[str, Any]:
    """All that the script prints."""
    for name in NAMES:
        os.environ.pop(name, None)
    model = TINY if quick else SMOLLM2
    works = [Work(model, "long_context", 50, 1, 16, 6, dtype) for dtype in dtypes]
    cells = [measure(work, spins, turns, steps) for work in works]
    found = machine()
    return {**found, "versions": found["versions"] | {"torch": version("torch")}, "cells": cells}


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="the tiny model")
    options.add_argument("--dtypes", nargs="+", choices=get_args(Dtype), default=["bfloat16"])
    options.add_argument("--spins", nargs="+", type=int, default=[10_000, 5_000, 2_000, 1_000])
    options.add_argument("--turns", type=int, default=7)
    options.add_argument("--steps", type=int, default=4, help="in a turn of each setting")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    # As an interrupt, so that the processes it has started end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = run(chosen.quick, chosen.dtypes, chosen.spins, chosen.turns, chosen.steps)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    print(found["machine"], found["versions"])
    for cell in found["cells"]:
        for where in ("alone", "busy"):
            print(f"{cell['dtype']}, {where}, load {cell[where]['load']}")
            for name, one in cell[where]["settings"].items():
                print(f"  {name:12s} " + "  ".join(_shown(one, unit) for unit in ("wall", "cpu")))


def _shown(one: dict[str, Any], unit: str) -> str:
    seconds, ratio = one[f"{unit}_seconds"], one[f"{unit}_over_default"]
    return (
        f"{unit} {seconds['median']:.3f} s [{seconds['low']:.3f}, {seconds['high']:.3f}],"
        f" {ratio['median']:.2f} of default [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    )


if __name__ == "__main__":
    main()
