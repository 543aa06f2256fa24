"""Which peak learning rate serves an adapter, by where it sits: real runs of SmolLM2-135M.

    python scripts/bench/placements/rates.py [NAME...] [--json]

Each cell (a placement, a rank, a text or a set of facts) is one pack of several rates. NAME: cells
whose name begins so, such as `text:linear`; by default all of them, which takes
hours of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from pmlray.config.bases.models import SMOLLM2
from pmlray.config.prepared_search import PreparedSearch, prepare_spec
from pmlray.config.search_spec import SearchSpec
from pmlray.engine.ready_pack import ready_pack
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.metrics import TrainedMember
from pmlray.engine.training.step import TorchStepper
from pmlray.types import DesignPoint, Pack
from scripts.bench.common.machine import machine
from scripts.bench.sizing.facts import facts

# Target tokens of so many facts of the seed.
FACTS = {60: 502, 300: 2513}
FACT_BATCH, FACT_SEED = 8, 3
FACTS_FILE = "facts.jsonl"
LOW, MIDDLE, HIGH = (
    (1e-3, 3e-3, 1e-2, 3e-2, 9e-2),
    (3e-3, 1e-2, 2e-2, 4e-2, 8e-2),
    (1e-2, 2e-2, 4e-2, 8e-2, 1.6e-1),
)
BLOCK, DOWN = (
    {"target_modules": "mlp_block", "layers": [20]},
    {
        "target_modules": ["down_proj"],
        "layers": [20],
    },
)
LAYER = {"target_modules": "all-linear", "layers": [20]}
QUERIES = {"target_modules": ["q_proj", "v_proj"], "layers": "all"}
LINEAR = {"target_modules": "all-linear", "layers": "all"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One adapter to train at several rates, on `length` tokens of text or on so many facts."""

    name: str
    adapter: dict[str, Any]
    rank: int
    length: int | None
    steps: int
    rates: tuple[float, ...]
    n_facts: int = 60

    @property
    def tokens(self) -> int:
        """Target tokens of a run."""
        return FACTS[self.n_facts] if self.length is None else self.length


CELLS = (
    *(Cell("text:block", BLOCK, r, n, 100, HIGH) for r, n in ((1, 48), (4, 128), (16, 320))),
    *(Cell("text:down", DOWN, r, n, 100, HIGH) for r, n in ((1, 48), (4, 128))),
    *(Cell("text:layer", LAYER, r, n, 100, MIDDLE) for r, n in ((1, 128), (4, 320))),
    *(Cell("text:queries", QUERIES, r, n, 60, LOW) for r, n in ((1, 192), (8, 256))),
    *(Cell("text:linear", LINEAR, r, n, 60, LOW[:4]) for r, n in ((1, 192), (8, 256))),
    *(Cell("facts:down", DOWN, r, None, 300, HIGH[:4]) for r in (4, 12)),
    *(Cell("facts:queries", QUERIES, r, None, 200, MIDDLE[:4]) for r in (1, 4)),
    *(Cell("facts:linear", LINEAR, r, None, 100, (1e-3, 2e-3, 5e-3, 1e-2)) for r in (1, 8)),
    *(Cell("many:linear", LINEAR, r, None, 200, (1e-3, 2e-3, 4e-3, 8e-3), 300) for r in (2, 8)),
    Cell("many:down", DOWN, 12, None, 400, HIGH[:4], 300),
)


def prepared(cell: Cell, folder: Path) -> PreparedSearch:
    """Return the search that a cell's runs belong to; its facts are in the folder."""
    task: dict[str, Any] = {"kind": "long_context", "prompt_format": "plain"}
    batch = 1
    if cell.length is None:
        rows = facts(cell.n_facts, FACT_SEED)
        (folder / FACTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        task, batch = (
            {"kind": "records", "records": FACTS_FILE, "prompt_format": "plain"},
            FACT_BATCH,
        )
    spec = {
        "name": "rates",
        "task": task,
        "model": {"id": SMOLLM2, "dtype": "bfloat16"},
        "adapter": cell.adapter,
        "space": {
            "lora_rank": [cell.rank],
            "seq_len": [cell.tokens],
            "train_steps": [cell.steps],
        },
        # All runs take all of their steps.
        "recipe": {"stop_loss": 0.0, "stop_gain": 0.0, "batch_size": batch},
        "design": {"n_initial": 1},
        "budget": {"gpu_seconds": 1.0},
    }
    return prepare_spec(SearchSpec.model_validate_json(json.dumps(spec)), folder)


def measure(cell: Cell) -> dict[str, Any]:
    """Train a cell at each of its rates, in one pack; return its row."""
    with TemporaryDirectory() as folder:
        search = prepared(cell, Path(folder))
    point = DesignPoint(cell.rank, cell.tokens, cell.steps)
    runs = tuple(search.plan_run(point, "sft", 0, 0, "law", rate) for rate in cell.rates)
    began = time.process_time()
    ready = ready_pack(search, Pack(0, runs), None)
    ended: list[TrainedMember] = []
    train_pack(
        ready.model, TorchStepper(ready.model, ready.optimizer), ready.optimizer, ready.members,
        search.spec.recipe, rules=search.spec.memft_rules(), on_finished=ended.extend,
        room=ready.room,
    )  # fmt: skip
    by_index = {member.index: member.scores for member in ended}
    found = [by_index[i] for i in range(len(runs))]
    return {
        "cell": cell.name,
        "rank": cell.rank,
        "adapter_params": cell.rank * search.params_per_rank,
        "n_sites": len(search.placement.sites),
        "tokens": point.seq_len,
        "steps": cell.steps,
        "auto": search.peak_rate_at(point),
        "final_loss_nats": {f"{r:g}": s.mean_nll for r, s in zip(cell.rates, found, strict=True)},
        "exact_recall": {f"{r:g}": s.recall.exact for r, s in zip(cell.rates, found, strict=True)},
        "cpu_seconds": time.process_time() - began,
    }


def rows(names: list[str]) -> Iterator[dict[str, Any]]:
    """Measure the cells whose names begin with one of these."""
    for cell in CELLS:
        if cell.name.startswith(tuple(names)):
            yield measure(cell)


def main() -> None:
    """Measure, and print a line a cell or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", metavar="NAME")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    found = []
    for row in rows(chosen.names or [""]):
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    if chosen.json:
        print(json.dumps({**machine(), "rows": found}, indent=2))
        return
    for row in found:
        losses = ", ".join(f"{rate}: {loss:.3g}" for rate, loss in row["final_loss_nats"].items())
        print(f"{row['cell']} rank {row['rank']}, auto {row['auto']:g}; nats a token {losses}")


if __name__ == "__main__":
    main()
