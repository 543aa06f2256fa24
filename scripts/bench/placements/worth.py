"""What a LoRA parameter is worth in each place: real runs of SmolLM2-135M, and the laws of them.

    python scripts/bench/placements/worth.py [--measure] [--seconds S] [--json]

`--measure` trains what the table lacks, a pack at a time (plan.py beside this), and can be broken
off and continued: a finished pack stays in searches/tables/placements, and checkpoints of the one
in training in runs/placements. Without it nothing is
trained, and the findings are those of the table as it stands: bits a parameter and worth by
placement, the errors of the laws at what they did not see, and whether the order of the placements
after a few steps is that at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from scripts.bench.common.machine import machine
from scripts.bench.placements.findings import findings
from scripts.bench.placements.plan import next_pack
from scripts.bench.placements.selection import tuned_rows
from scripts.bench.placements.table import append_rows, read_notes, read_rows, write_rows
from scripts.bench.placements.training import train
from scripts.bench.placements.words import describe

TABLES = ROOT / "searches" / "tables" / "placements"
# Every run, and those at their placement's tuned rate, which `pmlray fit` reads.
RUNS, TUNED = TABLES / "smollm2_runs.csv", TABLES / "smollm2.csv"
CHECKPOINTS = ROOT / "runs" / "placements"


def measure(seconds: float) -> None:
    """Train what the table lacks until all is there, or a pack ends after so many seconds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        rows = read_rows(RUNS)
        if not (pack := next_pack([row.measured for row in rows])):
            return
        print(pack[0].place.name, *((r.cell, r.rate) for r in pack), flush=True)
        found = train(pack, CHECKPOINTS)
        append_rows(RUNS, found, about_this_machine())
        for row in found:
            print(
                f"  {row.final_loss_nats:.4g} of {row.base_loss_nats:.4g} nats,"
                f" {row.bits_a_parameter:.3g} bits a parameter, {row.status},"
                f" {row.fall_if_doubled_nats:.3g} left, {row.gpu_seconds:.4g} s",
                flush=True,
            )
        write_rows(TUNED, tuned_rows([*rows, *found]), read_notes(RUNS))


def about_this_machine() -> list[str]:
    """Return lines of where the runs were measured."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return [
        "SmolLM2-135M-Instruct, de-quantised from Q4_1, bfloat16; random tokens; seed 0",
        f"{machine()['machine']}; {torch.get_num_threads()} thread; {packages}",
        "losses in nats per token; gpu_seconds are CPU seconds, beside other work",
    ]


def main() -> None:
    """Measure what is asked for, and print the findings or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--measure", action="store_true", help="train what the table lacks")
    options.add_argument("--seconds", type=float, default=float("inf"), help="start no pack later")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    if chosen.measure:
        measure(chosen.seconds)
    found = {**machine(), **findings(read_rows(RUNS))}
    print(json.dumps(found, indent=2) if chosen.json else describe(found))


if __name__ == "__main__":
    main()
