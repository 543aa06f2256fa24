"""Policies on tables of real measurements: what each must spend to predict what it never saw.

    python scripts/bench/design/replay.py [--quick] [--json] [--jobs N]

Every table of searches/tables holds a whole grid that the engine measured. A policy may measure all
of it but the two largest lengths and the largest rank; those are predicted, and
`cost_share_to_1_1` is the share of the remaining grid's cost from which the root mean square error
there stays within 1.1 times that of a law fitted to all of the remaining grid (null: beyond
`longest_share`). Seeds order the sequences and drive the policies that draw at random; the budgets
of a pack share trunks, for the full grid too. `run_coverage_90` is the share of the held-out runs
that fell into the 90 % interval of one new run, told when a quarter of the cost was spent; `noise`
is how far the held-out runs of one cell are from their own mean: no prediction can be closer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.law_options import LawOptions
from pmlray.errors import FitError
from pmlray.law import average_laws
from scripts.bench.common.machine import machine
from scripts.bench.design.offline import (
    POLICIES,
    Run,
    World,
    full_grid_errors,
    replay,
    run_data,
    seeds_of,
)
from scripts.bench.design.shares import Curve, curve, evaluate, share_line
from scripts.bench.design.table_worlds import table_names, table_world

LAW = LawOptions()
COVERAGE_SHARE = 0.25


def spend(task: tuple[str, str, int], longest: float) -> tuple[Curve, float]:
    """One replay: the errors at the held-out cells by share of the grid's cost, and the share of
    held-out runs within their 90 % intervals at COVERAGE_SHARE."""
    name, policy, seed = task
    world = table_world(name, seed)
    full = full_grid_errors(world, LAW)
    steps = replay(world, policy, seed, longest, LAW)
    affordable = [s for s in steps if s.gpu_seconds <= COVERAGE_SHARE * world.grid_cost] or steps
    return curve(world, steps, full, "heldout"), _covered(world, affordable[-1].runs, seed)


def _covered(world: World, runs: Sequence[Run], seed: int) -> float:
    data, rng = run_data(world, runs), np.random.default_rng(seed)
    r, t = np.array([[p.lora_rank, p.train_steps] for p in world.targets], float).T
    try:
        law = average_laws(data, LAW.forms, LAW.fit_options())
        samples = law.sample(LAW.n_bootstrap, rng)
    except FitError:
        return 0.0
    low, high = samples.run_interval(r, world.target_tokens, t, rng)
    return float(np.mean((low[:, None] <= world.heldout) & (world.heldout <= high[:, None])))


def _noise(world: World) -> float:
    return float(np.sqrt(np.mean(np.var(world.heldout, axis=1, ddof=1))))


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="few seeds, for a few minutes")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--policies", nargs="*", default=list(POLICIES))
    options.add_argument("--tables", nargs="*", default=table_names())
    chosen = options.parse_args()
    n_seeds, longest = (3, 0.3) if chosen.quick else (20, 0.5)
    tasks = [
        (name, policy, seed)
        for name in chosen.tables
        for policy in chosen.policies
        for seed in seeds_of(policy, n_seeds)
    ]
    with ProcessPoolExecutor(chosen.jobs) as pool:
        replayed = list(pool.map(partial(spend, longest=longest), tasks))
    grouped: dict[str, dict[str, list[Curve]]] = {}
    covered: dict[str, dict[str, list[float]]] = {}
    for (name, policy, _), (one, share) in zip(tasks, replayed, strict=True):
        grouped.setdefault(name, {}).setdefault(policy, []).append(one)
        covered.setdefault(name, {}).setdefault(policy, []).append(share)
    by_table = {name: evaluate(by_policy, longest) for name, by_policy in grouped.items()}
    figures = next(iter(by_table.values()), {})
    found: dict[str, Any] = {
        **machine(),
        "n_seeds": n_seeds,
        "seeds": "0 to n - 1",
        "longest_share": longest,
        "noise": {name: _noise(table_world(name, 0)) for name in by_table},
        "run_coverage_90": {
            name: {policy: float(np.mean(shares)) for policy, shares in of.items()}
            for name, of in covered.items()
        },
        **{figure: {name: of[figure] for name, of in by_table.items()} for figure in figures},
    }
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for name, of in by_table.items():
        full = of["error"][chosen.policies[0]]["full_grid"]
        print(f"{name}: full grid's error {full:.3f} nats, noise {found['noise'][name]:.3f}")
        for policy in chosen.policies:
            inside = found["run_coverage_90"][name][policy]
            print(f"  {share_line(policy, of)}, held-out runs in their interval {inside:.2f}")


if __name__ == "__main__":
    main()
