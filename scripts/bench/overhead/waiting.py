"""What waiting for room inside a pack saves: runs of mixed budgets, as packs and as one queue.

    python scripts/bench/overhead/waiting.py [--quick] [--json]

24 runs of three budgets that share no trunk, of which a step holds 8. `packs`: three packs of 8,
one after another, dealt out as the planner does; `queue`: one pack of 24 with room for 8;
`at_once`: one pack without any bound, as where the device holds all. Seconds are wall seconds
inside optimiser steps and evaluations, one core; ways take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from pmlray.config.bases.models import SMOLLM2, TINY, resolve_model
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import Probe
from pmlray.design.packing import Load, deal_out
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.prefix_cache import CachedRecord, build_prefix_cache
from pmlray.memory import Record
from pmlray.types import DesignPoint, PlannedRun, Room
from scripts.bench.common.bare_pack import train_bare
from scripts.bench.common.machine import machine
from scripts.bench.common.statistics import paired_ratio, spread

RUNS, AT_ONCE, LENGTH, RANK = 24, 8, 50, 16
RECIPE = Recipe(learning_rate=1e-2, schedule="linear", warmup_steps=0, stop_loss=0.0)
WAYS = ("packs", "queue", "at_once")


def train(
    base: BaseModel, record: CachedRecord, runs: Sequence[PlannedRun], room: Room | None
) -> tuple[float, int]:
    """One pack: its seconds, and the steps until its last run ended."""
    ended = train_bare(base, runs, [[record]] * len(runs), RECIPE, room)
    return sum(m.wall_seconds for m in ended), max(m.pack_steps for m in ended)


def run(quick: bool, repeats: int) -> dict[str, Any]:
    """All that the script prints."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    name, budgets = (TINY, (50, 100, 200)) if quick else (SMOLLM2, (10, 20, 40))
    probe = Probe(placement="mlp", layer=1 if quick else 24)
    dtype = "float32" if quick else "bfloat16"
    base = load_base_model(
        name, resolve_model(name, None), None, dtype, (probe.to_placement(),), torch.device("cpu")
    )
    ids = torch.randint(2, 250, (LENGTH + 8,), generator=torch.Generator().manual_seed(0)).tolist()
    (record,) = build_prefix_cache(base, [Record(tuple(ids[:8]), tuple(ids[8:]))])
    runs = [
        PlannedRun(DesignPoint(RANK, LENGTH, budgets[i % 3]), "sft", 0, i, "memft", f"{i:016x}")
        for i in range(RUNS)
    ]
    loads = [Load(1, 1, record.hidden_TD.shape[0], float(r.point.train_steps)) for r in runs]
    dealt = deal_out(loads, RUNS // AT_ONCE, lambda load: load.runs <= AT_ONCE)
    packs = {
        "packs": [([runs[i] for i in pack], None) for pack in dealt],
        "queue": [(runs, Room(AT_ONCE, AT_ONCE * record.hidden_TD.shape[0]))],
        "at_once": [(runs, None)],
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    steps: dict[str, int] = {}
    for turn in range(repeats + 1):
        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
            found = [train(base, record, own, room) for own, room in packs[way]]
            steps[way] = sum(n for _, n in found)
            # The first turn warms up.
            if turn:
                seconds[way].append(sum(s for s, _ in found))
    return {
        **machine(), "torch": torch.__version__, "model": name, "dtype": dtype, "cores": 1,
        "budgets": budgets, "repeats": repeats, "steps": steps,
        "seconds": {way: spread(found) for way, found in seconds.items()},
        "over_packs": {way: paired_ratio(seconds[way], seconds["packs"]) for way in WAYS[1:]},
    }  # fmt: skip


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="the tiny model")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    found = run(chosen.quick, chosen.repeats)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for way in WAYS:
        print(f"{way}: {found['steps'][way]} steps, {found['seconds'][way]}",
              found["over_packs"].get(way, ""))  # fmt: skip


if __name__ == "__main__":
    main()
