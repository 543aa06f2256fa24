"""Adapters at many sites beside PEFT under transformers' Trainer: adapter-steps by placement.

    python scripts/bench/speed/placements.py [--quick] [--json] [--dtype bfloat16|float32]

LoRA of rank 8 on every linear module, and on q and v, of all layers of SmolLM2-135M-Instruct; the
same records, first weights and steps as in engine.py, whose ways and turns these are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.bases.models import SMOLLM2
from pmlray.engine.model.device import multiplies_bfloat16
from scripts.bench.common.machine import machine
from scripts.bench.speed.cells import Plan, measure_group, ratios
from scripts.bench.speed.work import Dtype, Work

RANK = 8


def works(quick: bool, dtype: Dtype) -> list[Work]:
    """The groups of cells: both placements, at about 100 tokens a step and at 500."""
    lengths = (50,) if quick else (100, 500)
    return [
        Work(SMOLLM2, "long_context", length, 1, RANK, dtype=dtype, place=place)
        for place in ("all_linear", "q_v")
        for length in lengths
    ]


def run(quick: bool, dtype: Dtype) -> dict[str, Any]:
    """Measure all cells."""
    plan = Plan(repeats=2 if quick else 5, block_seconds=1.0, resident=True)
    cells: list[dict[str, Any]] = []
    for work in works(quick, dtype):
        print(work, file=sys.stderr)
        cells += measure_group(work, (1, 8) if quick else (1, 8, 32), plan, ("peft_trainer",))
    about = machine() | {"threads": torch.get_num_threads(), "dtype": dtype, "seed": 0}
    return {**about, "repeats": plan.repeats, "cells": cells, "ratios": ratios(cells)}


def table(found: dict[str, Any]) -> str:
    """The same for reading."""
    lines = [
        f"{found['machine']}, {found['threads']} threads, {found['dtype']}",
        f"{'place':12s}{'tokens':>7s}{'pack':>6s}{'over':>16s}  adapter-steps/s [least, most]",
    ]
    for r in found["ratios"]:
        rate = r["adapter_steps_per_second"]
        lines.append(
            f"{r['place']:12s}{r['seq_len']:7d}{r['n_adapters']:6d}{r['over']:>16s}"
            f"{rate['median']:9.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="one length, packs of 1 and 8")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--dtype", choices=get_args(Dtype), help="of the base")
    chosen = options.parse_args()
    best = "bfloat16" if multiplies_bfloat16(torch.device("cpu")) else "float32"
    found = run(chosen.quick, chosen.dtype or best)
    print(json.dumps(found, indent=2) if chosen.json else table(found))


if __name__ == "__main__":
    main()
