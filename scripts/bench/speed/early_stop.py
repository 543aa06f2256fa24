"""What ending runs early saves, and how far it moves delta_loss.

    python scripts/bench/speed/early_stop.py [--quick] [--json] [--stop-gain NATS]
                                             [--stop-loss NATS]

The same runs of SmolLM2-135M are trained in one process without any rule, with the one for runs
that no longer get anywhere (`recipe.stop_gain`) alone, and with that for runs that have learnt
everything (`recipe.stop_loss`) too. The bias is delta_loss with the rules minus without, nats per
token; that of runs which were not stopped is the noise of another packing. `steps_saved` is the
share of all runs' steps, `charged_steps_saved` that of the steps paid for where budgets share
trunks.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.backends.store.file_store import FileStore
from pmlray.config import Recipe
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.engine.measure import measure_pack
from pmlray.engine.training.step import TorchStepper
from pmlray.types import DesignPoint, Observation, Pack

SEARCH = Path(__file__).resolve().parents[3] / "searches/tables/smollm2_long_context.yaml"
TARGET_BIAS = 0.02
Runs = dict[tuple[DesignPoint, int, int], Observation]
# Rank 4 saturates on both lengths, rank 1 is far from it on the longer one at the last budget.
FULL = "{lora_rank: [1, 4], seq_len: [32, 64], train_steps: [160, 320, 640]}"
QUICK = "{lora_rank: [1, 4], seq_len: [24], train_steps: [80, 160, 320]}"
SEQUENCES, SEEDS = (0,), (0,)


def search_with(space: str, stop_gain: float, stop_loss: float) -> PreparedSearch:
    """The runs to train, under a recipe with these rules (0: never)."""
    return prepare_search(
        SEARCH,
        [
            f"space={space}",
            "model.dtype=bfloat16",
            "design.n_initial=1",
            f"sequences={list(SEQUENCES)}",
            f"seeds={list(SEEDS)}",
            "evaluate={generate_max_tokens: 0, control_tokens: 0}",
            f"recipe.stop_gain={stop_gain}",
            f"recipe.stop_loss={stop_loss}",
        ],
    )


def measure(search: PreparedSearch) -> Runs:
    """Every run of the space, in one pack, by point and replicate."""
    runs = tuple(
        search.plan_run(point, "sft", *pair, "law")
        for point in search.spec.space.points()
        for pair in search.spec.replicates()
    )
    with tempfile.TemporaryDirectory() as folder:
        store = FileStore(Path(folder))
        measure_pack(search, Pack(0, runs), store, store.adapters, TorchStepper, {})
        return {(o.point, o.sequence_id, o.seed): o for o in store.observations()}


def bias(pairs: Sequence[tuple[Observation, Observation]]) -> dict[str, float | int]:
    """Of (without, with) pairs: what the rules did to delta_loss, nats per token."""
    moved = np.array([on.delta_loss - off.delta_loss for off, on in pairs])
    if not len(moved):
        return {"n": 0}
    return {
        "n": len(moved),
        "mean": float(moved.mean()),
        "sd": float(moved.std(ddof=1)) if len(moved) > 1 else 0.0,
        "max_abs": float(np.abs(moved).max()),
        "steps_saved": 1 - sum(on.curve[-1][0] for _, on in pairs)
        / sum(off.curve[-1][0] for off, _ in pairs),
    }  # fmt: skip


def compared(off: Runs, on: Runs) -> dict[str, Any]:
    """The bias by whether a run was stopped, what was saved, and every run."""
    pairs = [(off[key], on[key]) for key in sorted(off.keys() & on.keys())]
    charged = [sum(o.charged_steps for o in runs.values()) for runs in (off, on)]
    return {
        "bias": {
            "all": bias(pairs),
            "stopped": bias([pair for pair in pairs if pair[1].stopped_early]),
            "unstopped": bias([pair for pair in pairs if not pair[1].stopped_early]),
        },
        "charged_steps_saved": 1 - charged[1] / charged[0],
        "runs": [
            {
                "lora_rank": before.point.lora_rank,
                "seq_len": before.point.seq_len,
                "train_steps": before.point.train_steps,
                "taken_steps": after.curve[-1][0],
                "final_loss": [before.final_loss, after.final_loss],
            }
            for before, after in pairs
        ],
    }


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    usual = Recipe()
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="six short runs")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--stop-gain", type=float, default=usual.stop_gain)
    options.add_argument("--stop-loss", type=float, default=usual.stop_loss)
    options.add_argument("--space", help="another space than that of the full or quick benchmark")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    space = chosen.space or (QUICK if chosen.quick else FULL)
    off = measure(search_with(space, 0.0, 0.0))
    rules = {"stop_gain": (chosen.stop_gain, 0.0), "both": (chosen.stop_gain, chosen.stop_loss)}
    found_by = {name: measure(search_with(space, *rule)) for name, rule in rules.items()}
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("torch", "transformers", "numpy")},
        "model": next(iter(off.values())).provenance["model"],
        "space": space,
        "sequences": SEQUENCES,
        "seeds": SEEDS,
        "stop_gain": chosen.stop_gain,
        "stop_loss": chosen.stop_loss,
        "target_bias": TARGET_BIAS,
        "rules": {name: compared(off, on) for name, on in found_by.items()},
    }
    print(json.dumps(found, indent=2) if chosen.json else table(found))


def table(found: dict[str, Any]) -> str:
    """The same for reading."""
    lines = [f"stop_gain {found['stop_gain']}, stop_loss {found['stop_loss']}, {found['space']}"]
    for rule, of in found["rules"].items():
        lines.append(f"{rule}: charged steps saved {of['charged_steps_saved']:.3f}")
        for name, numbers in of["bias"].items():
            shown = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            lines.append(f"  {name:10s} {shown}")
        for run in of["runs"]:
            before, after = run["final_loss"]
            lines.append(
                f"  r {run['lora_rank']} l {run['seq_len']} t {run['train_steps']}:"
                f" {run['taken_steps']} steps, loss {before:.4f} -> {after:.4f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
