"""How well a known law is recovered: coverage of the intervals, and what each policy must spend.

    python scripts/bench/design/recovery.py [--quick] [--json] [--jobs N]

Per kind of truth (worlds.py beside this): `coverage_90` is the share of the 90 % intervals at the
targets that hold the truth, over laws fitted to 60 runs of their grid; `exponents` has the same for
both exponents, with their mean absolute errors, and the intervals' mean width; `cost_share_to_1_1`
is the share of the full grid's cost from which a policy's root mean square error of held-out runs,
over all worlds, stays within 1.1 times that of the full grid (null: beyond `longest_share`).
`of_truth` has the same against the truth without noise, which the full grid knows much better than
any run can show. Designs of few runs: scripts/bench/design/calibration.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.config.law_options import LawOptions
from pmlray.law import average_laws, param_intervals
from scripts.bench.common.machine import machine
from scripts.bench.design.offline import POLICIES, full_grid_errors, replay, run_data, seeds_of
from scripts.bench.design.shares import Curve, curve, evaluate, share_line
from scripts.bench.design.worlds import KINDS, WELL_SPECIFIED, Kind, Truth, world

LAW = LawOptions()
LEVEL = 0.9
# Runs of the grid that a law is fitted to when the coverage of its intervals is measured.
COVERAGE_RUNS = 60


def coverage(kind: Kind, seed: int) -> dict[str, list[float]]:
    """Of one law fitted to COVERAGE_RUNS runs of its grid: which 90 % intervals hold the truth
    (1 or 0), how wide they are at the targets, nats, and the errors of the exponents."""
    truth, made = Truth(kind, seed), world(kind, seed)
    rng = np.random.default_rng([7, seed])
    runs = made.runs
    drawn = np.sort(rng.permutation(len(runs))[:COVERAGE_RUNS])
    data = run_data(made, [runs[i] for i in drawn])
    average = average_laws(data, LAW.forms)
    fit, samples = average.best, average.sample(400, rng)
    r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in made.targets], float).T
    low, high = samples.interval(r, n, t, LEVEL)
    intervals = param_intervals(fit.law, samples.parts[0].params, LEVEL)
    found = {"target": ((low <= made.truth) & (made.truth <= high)).astype(float).tolist()}
    found["target_width"] = (high - low).tolist()
    for name, true in (("rank_exponent", truth.alpha), ("len_exponent", truth.beta)):
        found[name] = [float(intervals[name][0] <= true <= intervals[name][1])]
        found[f"{name}_error"] = [abs(getattr(fit.law, name) - true)]
    return found


def spend(task: tuple[Kind, str, int], longest: float) -> tuple[Curve, Curve]:
    """One policy in one world: its errors of held-out runs, and of the truth behind them."""
    kind, policy, seed = task
    made = world(kind, seed)
    full = full_grid_errors(made, LAW)
    steps = replay(made, policy, seed, longest, LAW)
    return curve(made, steps, full, "heldout"), curve(made, steps, full, "truth")


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="few seeds, for a few minutes")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--policies", nargs="*", default=list(POLICIES))
    options.add_argument("--kinds", nargs="*", default=list(KINDS))
    chosen = options.parse_args()
    n_laws, n_seeds, longest = (30, 3, 0.15) if chosen.quick else (200, 20, 0.3)
    kinds = [kind for kind in KINDS if kind in chosen.kinds]
    with ProcessPoolExecutor(chosen.jobs) as pool:
        covered = {
            kind: list(pool.map(partial(coverage, kind), range(n_laws)))
            for kind in kinds
            if kind in WELL_SPECIFIED
        }
        tasks = [
            (kind, policy, seed)
            for kind in kinds
            for policy in chosen.policies
            for seed in seeds_of(policy, n_seeds)
        ]
        pairs = list(pool.map(partial(spend, longest=longest), tasks))
    found = {
        **machine(),
        "n_laws": n_laws,
        "n_seeds": n_seeds,
        "seeds": "0 to n - 1",
        "longest_share": longest,
        **_coverages(covered),
        **_by_kind(tasks, [heldout for heldout, _ in pairs], longest),
        "of_truth": _by_kind(tasks, [truth for _, truth in pairs], longest),
    }
    print(json.dumps(found, indent=2) if chosen.json else _table(found))


def _by_kind(
    tasks: list[tuple[Kind, str, int]], curves: list[Curve], longest: float
) -> dict[str, dict[str, Any]]:
    """What `evaluate` finds, its figure first and the kind second."""
    grouped: dict[str, dict[str, list[Curve]]] = {}
    for (kind, policy, _), one in zip(tasks, curves, strict=True):
        grouped.setdefault(kind, {}).setdefault(policy, []).append(one)
    found = {kind: evaluate(by_policy, longest) for kind, by_policy in grouped.items()}
    names = next(iter(found.values()), {})
    return {name: {kind: of[name] for kind, of in found.items()} for name in names}


def _coverages(
    by_kind: dict[Kind, list[dict[str, list[float]]]],
) -> dict[str, dict[Kind, Any]]:
    means = {kind: _means(rows) for kind, rows in by_kind.items()}
    return {
        "coverage_90": {kind: of.pop("target") for kind, of in means.items()},
        "exponents": dict(means),
    }


def _means(rows: list[dict[str, list[float]]]) -> dict[str, float]:
    return {name: float(np.mean([x for row in rows for x in row[name]])) for name in rows[0]}


def _table(found: dict[str, Any]) -> str:
    lines = []
    for kind, policies in found["cost_share_to_1_1"].items():
        of_targets = found["coverage_90"].get(kind)
        shown = "" if of_targets is None else f" coverage of 90 % intervals {of_targets:.3f}"
        for name, value in found["exponents"].get(kind, {}).items():
            shown += f", {name} {value:.3f}"
        lines.append(f"{kind}:{shown or ' none of the fitted forms'}")
        of_kind = {name: found[name][kind] for name in ("cost_share_to_1_1", "error")}
        lines += [f"  {share_line(policy, of_kind)}" for policy in policies]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
