"""What a base in bfloat16 changes of delta_loss: the same runs on it and on one in fp32.

    python scripts/bench/speed/precision.py [--quick] [--json]

Random tokens after a prompt of 8, of lengths on both sides of where rows attend in another way on a
CPU, each by two ranks and from two seeds. Adapters are fp32 in both. Per run: delta_loss in nats by
either base, and the difference as a share of fp32's. A base in another precision rounds otherwise
at every step, so runs drift apart as two seeds do; the spread over seeds is printed beside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from pmlray.config.bases.models import SMOLLM2, TINY, resolve_model
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import Probe
from pmlray.engine.model.base_model import load_base_model
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.memory import Record
from pmlray.types import DesignPoint, PlannedRun
from scripts.bench.common.bare_pack import train_bare
from scripts.bench.common.machine import machine

PROMPT, LENGTHS, RANKS, SEEDS = 8, (20, 80, 120), (2, 16), (0, 1)


def delta_losses(
    dtype: Literal["float32", "bfloat16"],
    quick: bool,
    points: list[tuple[int, int, int]],
    steps: int,
) -> list[float]:
    """Nats per token, of every (length, rank, seed), trained as one pack."""
    name = TINY if quick else SMOLLM2
    probe = Probe(placement="mlp", layer=1 if quick else 20)
    base = load_base_model(
        name, resolve_model(name, None), None, dtype, (probe.to_placement(),), torch.device("cpu")
    )
    records = {}
    for length in {length for length, _, _ in points}:
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(2, 250, (PROMPT + length,), generator=generator).tolist()
        record = Record(tuple(ids[:PROMPT]), tuple(ids[PROMPT:]))
        (records[length],) = build_prefix_cache(base, [record])
    runs = [
        PlannedRun(DesignPoint(rank, length, steps), "sft", 0, seed, "law", f"{i:016x}")
        for i, (length, rank, seed) in enumerate(points)
    ]
    rows = [[records[run.point.seq_len]] for run in runs]
    trained = train_bare(base, runs, rows, Recipe(learning_rate=1e-2, stop_loss=0.0))
    return [member.curve[0][1] - member.scores.mean_nll for member in trained]


def run(quick: bool, steps: int) -> dict[str, Any]:
    """All that the script prints."""
    points = list(product(LENGTHS, RANKS, SEEDS))
    exact, rounded = (delta_losses(d, quick, points, steps) for d in ("float32", "bfloat16"))
    shares = [abs(b - a) / a for a, b in zip(exact, rounded, strict=True)]
    seeds = [abs(a - b) / a for a, b in zip(exact[::2], exact[1::2], strict=True)]
    return {
        **machine(), "torch": torch.__version__, "model": TINY if quick else SMOLLM2,
        "steps": steps,
        "runs": [
            {"seq_len": length, "lora_rank": rank, "seed": seed, "float32": a, "bfloat16": b}
            for (length, rank, seed), a, b in zip(points, exact, rounded, strict=True)
        ],
        "off": {"median": statistics.median(shares), "most": max(shares)},
        "between_seeds": {"median": statistics.median(seeds), "most": max(seeds)},
    }  # fmt: skip


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="the tiny model")
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    found = run(chosen.quick, chosen.steps)
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for one in found["runs"]:
        print(f"{one['seq_len']} tokens, rank {one['lora_rank']}, seed {one['seed']}:"
              f" {one['float32']:.4f} {one['bfloat16']:.4f} nats")  # fmt: skip
    print("off by", found["off"], "seeds by", found["between_seeds"])


if __name__ == "__main__":
    main()
