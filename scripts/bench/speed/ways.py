"""The ways of training by name, each on exactly the same work.

    python -m scripts.bench.speed.ways WAY WORK_JSON SPAWNED

Run by `pace.Child`; the same functions run whole jobs and the tests of equal work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from scripts.bench.speed.pace import Pace, Pacer
from scripts.bench.speed.work import Weights, Work, work_from_json

# By module: a way's start-up must not pay for another's imports.
MODULES = {
    "pmlray": "packed",
    "pmlray_bare": "packed",
    "pmlray_ray": "on_ray",
    "authors": "rivals",
    "peft_trainer": "trainers",
    "peft_deepspeed": "rivals",
    "trl_sft": "trainers",
}


def way_named(name: str) -> Callable[[Work, Pace], Weights]:
    """Trains one adapter (a pack's first is returned) and counts its steps; ImportError where a
    package is missing."""
    return getattr(import_module(f"scripts.bench.speed.{MODULES[name]}"), name)


def main(way: str, work: Work, spawned: float) -> None:
    """Train until the parent has had enough."""
    reports = os.fdopen(os.dup(1), "w")
    # What libraries print must not mix with the reports.
    os.dup2(2, 1)
    pacer = Pacer(sys.stdin, reports, spawned)
    try:
        pacer.run(lambda: way_named(way)(work, pacer))
    except ImportError as error:
        pacer.absent(str(error))


if __name__ == "__main__":
    main(sys.argv[1], work_from_json(sys.argv[2]), float(sys.argv[3]))
