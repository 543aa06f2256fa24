"""How well a known law is recovered: coverage of the intervals, and what each policy must spend.

    python scripts/bench/recovery.py [--quick] [--json] [--jobs N]

Per kind of truth (scripts/bench/worlds.py): `coverage_90` is the share of laws whose 90 % interval
holds the truth, for the prediction at each target and for both exponents (and the exponents' mean
absolute errors); `cost_share_to_1_1` the share of the full grid's cost from which a policy's root
mean square error of held-out runs, over all worlds, stays within 1.1 times that of the full grid.
`of_truth` has the same against the truth without noise, which the full grid knows much better than
any run can show.
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
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pmlray.errors import FitError
from pmlray.law import (
    LawData,
    average_laws,
    bootstrap_law,
    fit_law,
    param_intervals,
    prediction_interval,
)
from scripts.bench.offline import (
    POLICIES,
    Curve,
    World,
    curve,
    error_ratio,
    errors_of,
    everything,
    machine,
    pooled_error,
    replay,
    share_with_interval,
)
from scripts.bench.worlds import KINDS, WELL_SPECIFIED, Kind, Truth, world

FORMS = ("power", "ceiling")
SHOWN_SHARES = (0.05, 0.1, 0.2)
FACTOR = 1.1
LEVEL = 0.9


def predict(world_: World, data: LawData) -> NDArray[np.float64]:
    """What pmlray would predict at the targets from these runs."""
    r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in world_.targets], float).T
    try:
        return average_laws(data, FORMS).predict(r, n, t)
    except FitError:
        return np.full(r.shape, float(np.mean(data.delta_loss)))


def coverage(kind: Kind, seed: int) -> dict[str, list[float]]:
    """Of one law fitted to 60 runs of its grid: which 90 % intervals hold the truth (1 or 0), and
    the errors of the exponents."""
    truth, made = Truth(kind, seed), world(kind, seed)
    rng = np.random.default_rng([7, seed])
    data = everything(made)
    data = data.subset(np.sort(rng.permutation(len(data))[:60]))
    fit = fit_law(data, "ceiling" if kind == "ceiling" else "power")
    samples = bootstrap_law(data, fit, 400, rng)
    r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in made.targets], float).T
    low, high = prediction_interval(fit, samples, r, n, t, LEVEL)
    intervals = param_intervals(fit.law, samples, LEVEL)
    found = {"target": ((low <= made.truth) & (made.truth <= high)).astype(float).tolist()}
    for name, true in (("rank_exponent", truth.alpha), ("len_exponent", truth.beta)):
        found[name] = [float(intervals[name][0] <= true <= intervals[name][1])]
        found[f"{name}_error"] = [abs(getattr(fit.law, name) - true)]
    return found


def spend(task: tuple[Kind, int, str], longest: float) -> tuple[Curve, Curve]:
    """One policy in one world: its errors of held-out runs, and of the truth behind them."""
    kind, seed, policy = task
    made = world(kind, seed)
    full = errors_of(made, predict(made, everything(made)))
    steps = replay(made, policy, seed, longest, FORMS, partial(predict, made))
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
    n_laws, n_seeds, longest = (30, 4, 0.2) if chosen.quick else (200, 20, 0.3)
    with ProcessPoolExecutor(chosen.jobs) as pool:
        specified = [k for k in WELL_SPECIFIED if k in chosen.kinds]
        laws = {k: list(pool.map(partial(coverage, k), range(n_laws))) for k in specified}
        tasks = [(k, s, p) for k in chosen.kinds for p in chosen.policies for s in range(n_seeds)]
        curves = list(pool.map(partial(spend, longest=longest), tasks))
    replays: dict[str, dict[str, list[tuple[Curve, Curve]]]] = {}
    for (kind, _, policy), pair in zip(tasks, curves, strict=True):
        replays.setdefault(kind, {}).setdefault(policy, []).append(pair)
    found = {
        **machine(),
        "n_laws": n_laws,
        "n_seeds": n_seeds,
        "seeds": "0 to n - 1",
        "longest_share": longest,
        "coverage_90": {k: _means(rows) for k, rows in laws.items()},
        **_evaluated(replays, 0, longest),
        "of_truth": _evaluated(replays, 1, longest),
    }
    print(json.dumps(found, indent=2) if chosen.json else _table(found))


def _evaluated(
    replays: dict[str, dict[str, list[tuple[Curve, Curve]]]], which: int, longest: float
) -> dict[str, Any]:
    """Shares, errors and errors over random's, of held-out runs (0) or of the truth (1)."""
    of = {
        kind: {policy: [pair[which] for pair in pairs] for policy, pairs in policies.items()}
        for kind, policies in replays.items()
    }
    return {
        "cost_share_to_1_1": {
            kind: {
                policy: share_with_interval(curves, FACTOR, longest, np.random.default_rng(0))
                for policy, curves in policies.items()
            }
            for kind, policies in of.items()
        },
        "error": {
            kind: {policy: _errors(curves) for policy, curves in policies.items()}
            for kind, policies in of.items()
        },
        "error_over_random": {
            kind: {
                policy: {
                    str(share): error_ratio(curves, policies["random"], share)
                    for share in SHOWN_SHARES
                }
                for policy, curves in policies.items()
                if "random" in policies and policy != "random"
            }
            for kind, policies in of.items()
        },
    }


def _means(rows: list[dict[str, list[float]]]) -> dict[str, float]:
    return {name: float(np.mean([x for row in rows for x in row[name]])) for name in rows[0]}


def _errors(curves: list[Curve]) -> dict[str, float]:
    """Root mean square error at the targets by share of the grid's cost, nats."""
    shown = {str(share): pooled_error(curves, share) for share in SHOWN_SHARES}
    return shown | {"full_grid": float(np.sqrt(np.mean([c.full_rmse**2 for c in curves])))}


def _table(found: dict[str, Any]) -> str:
    lines = []
    for kind, policies in found["cost_share_to_1_1"].items():
        covered = found["coverage_90"].get(kind, {})
        shown = ", ".join(f"{name} {value:.3f}" for name, value in covered.items())
        lines.append(f"{kind}: {shown or 'not one of the fitted forms'}")
        for policy, at in policies.items():
            strict = found["of_truth"]["cost_share_to_1_1"][kind][policy]
            errors = ", ".join(f"{s} {e:.3f}" for s, e in found["error"][kind][policy].items())
            lines.append(
                f"  {policy:17s} {at['value']:.2f} [{at['low']:.2f}, {at['high']:.2f}]"
                f"  of the truth {strict['value']:.2f}  error at share {errors}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
