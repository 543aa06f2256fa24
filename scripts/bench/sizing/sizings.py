"""Whether `pmlray size` keeps what it says: many small record sets sized from nothing.

    python scripts/bench/sizing/sizings.py [--model tiny-random-llama] [--sizings 30] [--steps 400]
        [--max-rank 32] [--recall 0.9] [--json] [--keep FOLDER]

Sets are made up: `codes` (four digits), `names` (a first name) and `facts` (of facts.py beside it),
in turn, of 10 to 24 records, a seed each. For every one `pmlray size --dry-run` and `pmlray size`
run as a user would run them, a process each. `passed`: whether the first rank that was trained
recalled what was asked when it was decoded, by what the rank was chosen (`basis`) and by the law's
status; where the basis is `law`, that share is to be the stated confidence. `ratio`: gpu_seconds
spent over those that the dry run promised. Sets that `size` refuses are counted with its reason.
With --keep each set's finding is kept as JSON, and a run broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.memory.names import FIRST_NAMES
from scripts.bench.common.machine import machine
from scripts.bench.sizing.facts import facts

KINDS = ("codes", "names", "facts")
FEWEST, MOST = 10, 24
# A sizing of a small set takes a minute or three; one that hangs is a finding of its own.
LONGEST = 1800


def record_set(kind: str, seed: int) -> list[dict[str, str]]:
    """A made-up set of a kind, of 10 to 24 records."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    n = int(rng.integers(FEWEST, MOST + 1))
    if kind == "facts":
        return facts(n, seed)
    if kind == "names":
        targets = [f" {name}" for name in rng.choice(FIRST_NAMES, n)]
    else:
        targets = [f" {code:04d}" for code in rng.integers(0, 10_000, n).tolist()]
    return [{"query": f"key {i}:", "target": target} for i, target in enumerate(targets)]


def pmlray_json(arguments: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """What a command prints with --json, and the last line of its stderr."""
    command = [sys.executable, "-m", "pmlray", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
    said = done.stderr.strip().splitlines()
    return (json.loads(done.stdout) if done.stdout else None), (said[-1] if said else "")


def sizing(kind: str, seed: int, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One set: what was promised, chosen, spent and recalled."""
    rows, file = record_set(kind, seed), folder / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["size", "--records", str(file), "--model", asked.model]
    arguments += ["--recall", str(asked.recall), "--out", str(folder / "out")]
    for name in ("steps", "max_rank"):
        if (value := getattr(asked, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    plan, said = pmlray_json([*arguments, "--dry-run"])
    row: dict[str, Any] = {"kind": kind, "seed": seed, "n_records": len(rows)}
    if plan is None:
        return row | {"refused": said}
    start = time.monotonic()
    found, said = pmlray_json(arguments)
    row |= {"promised": plan["predicted_gpu_seconds"], "wall_seconds": time.monotonic() - start}
    if found is None:
        return row | {"refused": said}
    sized, cost = found["sized"], found["cost"]
    spent = cost["search_gpu_seconds"] + cost["training_gpu_seconds"]
    return row | {
        "lora_rank": sized["lora_rank"],
        "basis": sized["basis"],
        "status": sized["law_status"],
        "n_obs": sized["law_n_obs"],
        "confidence": sized["confidence"],
        "interval": sized["interval"],
        "passed": len(found["attempts"]) == 1 and found["recall"]["reached"],
        "attempts": [(a["lora_rank"], a["exact_recall"]) for a in found["attempts"]],
        "spent": spent,
        "ratio": spent / plan["predicted_gpu_seconds"],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares that passed at the first rank, with their 90 % intervals, and what it cost."""
    done = [row for row in rows if "refused" not in row]
    shares: dict[str, Any] = {}
    for name in ("basis", "status"):
        for value, n in sorted(Counter(row[name] for row in done).items()):
            passed = sum(row["passed"] for row in done if row[name] == value)
            low, high = binomtest(passed, n).proportion_ci(0.9, method="wilson")
            shares[f"{name} {value}"] = {"passed": passed, "of": n, "low": low, "high": high}
    ratios = [row["ratio"] for row in done]
    within = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
    return {
        "sizings": len(rows),
        "passed": sum(row["passed"] for row in done),
        "of": len(done),
        "shares": shares,
        "ratio_quantiles": np.quantile(ratios, [0.05, 0.5, 0.95]).tolist() if ratios else None,
        "ratio_within_1.5": within,
        "refused": dict(Counter(row["refused"] for row in rows if "refused" in row)),
    }


def main() -> None:
    """Run the benchmark and print a summary, or one JSON object with every set."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="tiny-random-llama")
    options.add_argument("--sizings", type=int, default=30)
    options.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    options.add_argument("--steps", type=int)
    options.add_argument("--max-rank", type=int)
    options.add_argument("--recall", type=float, default=0.9)
    options.add_argument("--keep", type=Path, help="folder of findings, kept and continued")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = options.parse_args()
    rows: list[dict[str, Any]] = []
    for i in range(asked.sizings):
        kind, seed = asked.kinds[i % len(asked.kinds)], i // len(asked.kinds)
        kept = None if asked.keep is None else asked.keep / f"{kind}-{seed}.json"
        if kept is not None and kept.exists():
            rows.append(json.loads(kept.read_text()))
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(sizing(kind, seed, asked, Path(folder)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(rows[-1]))
    found = {**machine(), "model": asked.model, **summary(rows)}
    print(json.dumps({**found, "rows": rows} if asked.json else found, indent=2))


if __name__ == "__main__":
    main()
