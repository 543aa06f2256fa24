"""The engine beside what people use instead: speed, memory, start-up, and a whole law.

    python scripts/bench/speed/engine.py [--quick] [--json] [--dtype bfloat16|float32]
        [--law measured|estimated|none] [--keep FILE [--parts N]]

All ways do the same work (tests/integration/test_bench_engine.py compares the trained weights):
LoRA on down_proj of one layer, AdamW clipped at 1, linear decay, no dropout, the same records in
the same order, a base in bf16 (on a CPU that does not multiply it: in fp32). What differs is each
way's own: on a bf16 base the authors' loop keeps adapter and optimiser state in bf16, DeepSpeed in
bf16 with fp32 masters, the others in fp32; rivals pad rows to a rectangle and score all positions.
A rival trains one adapter in a process, so its rate stands beside every size of pmlray's packs. On
a GPU the bases are Qwen3-8B's and Llama-3.1-8B's configurations with random weights, started anew
each round. `captured` is the share of a cell's measured steps that a CUDA graph replayed
(captured.py in the engine; 0 on a CPU).

All of it takes hours. With --keep every part (the ways on one work, or the law by one way) is kept
in a file once it is measured, and the same command goes on from there; --parts ends a sitting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.bases.models import SMOLLM2
from pmlray.engine.model.device import multiplies_bfloat16
from scripts.bench.common.machine import machine
from scripts.bench.common.resumable import ResumableParts, SittingOver
from scripts.bench.speed.cells import RIVALS, Plan, growth, measure_group, ratios
from scripts.bench.speed.whole_law import (
    LAW,
    QUICK_LAW,
    LawGrid,
    estimated_law,
    job_seconds,
    law_jobs,
    law_points,
    measured_laws,
)
from scripts.bench.speed.work import RANDOM_WEIGHTS, Dtype, Work

VERSIONED = ("torch", "transformers", "peft", "deepspeed", "accelerate", "trl")
# mLoRA trains many adapters on one base, but not beside the versions that pmlray pins.
MULTI_ADAPTER = {
    "way": "mlora",
    "status": "not installed",
    "reason": "mlora 0.5.2 needs torch <2.4 and transformers <4.45",
}


def works(quick: bool, on_gpu: bool, dtype: Dtype) -> list[Work]:
    """The groups of cells, each to be done by every way."""
    models = tuple(RANDOM_WEIGHTS) if on_gpu else (SMOLLM2,)
    ranks = (16,) if quick else (1, 16, 256)
    lengths = (50,) if quick else (50, 500, 1000, *((10_000,) if on_gpu else ()))
    found = []
    for model in models:
        for rank in ranks:
            found.append(Work(model, "phonebook", 1000, 4, rank))
            found += [Work(model, "long_context", length, 1, rank) for length in lengths]
    return [replace(work, dtype=dtype) for work in found]


def law_figures(
    cells: Sequence[dict[str, Any]],
    model: str,
    grid: LawGrid,
    dtype: Dtype,
    measured: bool,
    kept: ResumableParts,
) -> list[dict[str, Any]]:
    """The whole job by each way that is installed, measured or estimated from its cells."""
    points = law_points(model, grid, dtype)
    own: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        alike = cell["task"] == "long_context" and cell["model"] == model
        if alike and cell["status"] == "measured" and cell["way"] in ("pmlray", *RIVALS):
            own.setdefault(cell["way"], []).append(cell)
    if measured:
        jobs = law_jobs(points, [way for way in own if way != "pmlray"])
        seconds = [
            kept.measured(f"{grid} on {model}: {job.name}", partial(job_seconds, job))
            for job in jobs
        ]
        found = measured_laws(jobs, seconds)
    else:
        found = []
        for way, known in own.items():
            starts = min(cell["start_seconds"]["median"] for cell in known)
            found.append(estimated_law(way, points, starts, _cost_from(known)))
    for job in found:
        job["over_pmlray"] = job["gpu_seconds"] / found[0]["gpu_seconds"]
        job |= {"model": model, "points": len(points), **asdict(grid)}
    return found


def _cost_from(cells: Sequence[dict[str, Any]]) -> Any:
    def seconds(point: Work) -> float:
        """Of an adapter-step, in the nearest length's and rank's largest pack."""
        near = min(
            cells,
            key=lambda cell: (
                abs(cell["seq_len"] - point.seq_len),
                abs(cell["lora_rank"] - point.lora_rank),
                -cell["n_adapters"],
            ),
        )
        return 1 / near["adapter_steps_per_second"]["median"]

    return seconds


def run(
    quick: bool, dtype: Dtype, law: str, file: Path | None, parts: int | None
) -> dict[str, Any]:
    """Measure everything that the file does not hold; SittingOver after so many parts."""
    on_gpu = torch.cuda.is_available()
    about = machine()
    about["versions"] |= {package: _version(package) for package in VERSIONED}
    about["device"] = torch.cuda.get_device_name() if on_gpu else "CPU"
    about["threads"] = torch.get_num_threads()
    about["dtype"] = dtype
    plan = Plan(repeats=5, block_seconds=0.25 if quick else 1.0, resident=not on_gpu)
    packs = (1, 8) if quick else (1, 8, 32)
    kept = ResumableParts(file, {**about, **asdict(plan), "packs": list(packs)}, parts)
    cells: list[dict[str, Any]] = []
    todo = works(quick, on_gpu, dtype)
    for i, work in enumerate(todo, start=1):
        print(f"{i}/{len(todo)}: {work}", file=sys.stderr)
        cells += kept.measured(str(work), partial(measure_group, work, packs, plan))
    grid = QUICK_LAW if quick else LAW
    jobs = []
    for model in dict.fromkeys(work.model for work in todo) if law != "none" else ():
        jobs += law_figures(cells, model, grid, dtype, law == "measured", kept)
    return {
        **about,
        "seed": todo[0].seed,
        "repeats": plan.repeats,
        "cells": [*cells, MULTI_ADAPTER],
        "ratios": ratios(cells),
        "growth": growth(cells),
        "law": jobs,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(found: dict[str, Any]) -> str:
    """The same for reading."""
    lines = [
        f"{found['machine']}, {found['device']}, {found['threads']} threads, {found['dtype']}",
        f"{'way':15s}{'model':13s}{'task':13s}{'l':>6s}{'r':>5s}{'pack':>5s}"
        f"{'adapter-steps/s [least, most]':>32s}{'tokens/s':>10s}{'GFLOP/s':>9s}{'of peak':>8s}"
        f"{'GB':>7s}{'in step':>8s}{'start s':>8s}{'graph':>7s}",
    ]
    for cell in found["cells"]:
        if cell["status"] != "measured":
            lines.append(f"{cell['way']:15s}{cell['status']}: {cell['reason']}")
            continue
        rate = cell["adapter_steps_per_second"]
        lines.append(
            f"{cell['way']:15s}{cell['model']:13s}{cell['task']:13s}{cell['seq_len']:6d}"
            f"{cell['lora_rank']:5d}{cell['n_adapters']:5d}"
            f"{rate['median']:14.2f} [{rate['low']:6.2f}, {rate['high']:6.2f}]"
            f"{cell['supervised_tokens_per_second']['median']:10.0f}"
            f"{cell['flops_per_second']['median'] / 1e9:9.1f}"
            f"{cell['share_of_matmul_peak']['median']:8.1%}"
            f"{cell['peak_memory_bytes'] / 1e9:7.2f}"
            f"{cell['step_memory_bytes'] / 1e9:8.2f}{cell['start_seconds']['median']:8.1f}"
            # A part that was kept before there were graphs had none.
            f"{cell.get('captured', 0):7.0%}"
        )
    lines.append(
        "\npmlray over            (adapter-steps/s [least, most]; peak memory; that of steps)"
    )
    for r in found["ratios"]:
        rate = r["adapter_steps_per_second"]
        lines.append(
            f"{r['over']:15s}{r['model']:13s}{r['task']:13s}{r['seq_len']:6d}{r['lora_rank']:5d}"
            f"{r['n_adapters']:5d}{rate['median']:9.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
            f"{r['peak_memory']:8.2f}{r['step_memory']:8.2f}"
        )
    for g in found["growth"]:
        if g["way"] == "pmlray":
            place = ", ".join(
                f"{k} {v}" for k, v in g.items() if k not in ("way", "along", "exponent")
            )
            lines.append(f"a step's cost ~ {g['along']}^{g['exponent']:.2f} ({place})")
    for job in found["law"]:
        several = job["way"] == "pmlray" and job["status"] == "measured"
        each = f" [{min(job['jobs']):.0f}, {max(job['jobs']):.0f}]" if several else ""
        lines.append(
            f"{job['points']} points by {job['way']}: {job['gpu_seconds']:.0f}{each} device-seconds"
            f" ({job['status']}), {job['over_pmlray']:.2f} times pmlray's"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="two works, a shorter law")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the base")
    options.add_argument("--law", choices=("measured", "estimated", "none"))
    options.add_argument("--keep", type=Path, help="file of the parts measured so far")
    options.add_argument("--parts", type=int, help="end after so many; goes with --keep")
    chosen = options.parse_args()
    if chosen.parts is not None and chosen.keep is None:
        options.error("--parts without --keep would throw away what is measured; name a file")
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = chosen.dtype or ("bfloat16" if multiplies_bfloat16(on) else "float32")
    law = chosen.law or ("estimated" if chosen.quick else "measured")
    try:
        found = run(chosen.quick, dtype, law, chosen.keep, chosen.parts)
    except SittingOver as next_part:
        print(f"to go on with: {next_part}", file=sys.stderr)
        return
    print(json.dumps(found, indent=2) if chosen.json else table(found))


if __name__ == "__main__":
    main()
