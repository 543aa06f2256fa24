"""Whether intervals hold: 90 % intervals of the law against runs and truths that no fit has seen.

    python scripts/bench/design/calibration.py [--quick] [--json] [--jobs N] [--designs N]
        [--parts random v_optimal synthetic]

`random`, `v_optimal`: designs of 6 to 40 runs from the small ranks and lengths of a shipped table
(calibration_worlds.py beside this), drawn at random or chosen by that rule after four such runs,
tell what one new run measures at the unsaturated cells of the largest rank and length.
`synthetic`: designs of as many runs of a made-up law tell its truth at larger ranks and lengths.

`hold`: the share of the 90 % intervals that hold what they are of, over all, and over those of each
status of the law with its number of designs. `score`: mean interval score in nats (Gneiting and
Raftery 2007, doi:10.1198/016214506000001437; less is better). `claimed` and `real`: mean error at
the targets that the law expects of its median, and that it has, nats. Rivals get the same runs: a
Gaussian process in log rank, length and steps, and nonlinear least squares of the same forms, the
best by BIC, with Student's intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.law import LawData, fit_law
from pmlray.types import DesignPoint
from scripts.bench.common.machine import machine
from scripts.bench.design.calibration_rivals import RIVALS
from scripts.bench.design.calibration_worlds import (
    SIZES,
    TABLE_WORLDS,
    Asked,
    synthetic_designs,
    table_designs,
)
from scripts.bench.design.worlds import KINDS

LEVEL = 0.9
INTERACTION = "interaction"


@dataclass
class Tally:
    """What designs of one size have shown."""

    hold: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)
    real: list[float] = field(default_factory=list)
    status: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Means over the designs."""
        found: dict[str, Any] = {"designs": len(self.hold), "hold": _mean(self.hold)}
        found |= {"score": _mean(self.score)}
        if self.status:
            found |= {"claimed": _mean(self.claimed), "real": _mean(self.real)}
            found["by_status"] = {
                name: [
                    sum(s == name for s in self.status),
                    _mean([h for h, s in zip(self.hold, self.status, strict=True) if s == name]),
                ]
                for name in sorted(set(self.status))
            }
        return found


def interval_score(
    low: np.ndarray, high: np.ndarray, measured: np.ndarray, level: float = LEVEL
) -> float:
    """Mean score of central intervals, nats."""
    missed = np.maximum(low - measured, 0.0) + np.maximum(measured - high, 0.0)
    return float(np.mean(high - low + 2.0 / (1.0 - level) * missed))


def of_law(data: LawData, asked: Asked, seed: int) -> dict[str, Any]:
    """pmlray's own intervals of what is asked."""
    points = [
        DesignPoint(*map(int, row)) for row in zip(asked.r, asked.length, asked.t, strict=True)
    ]
    rng = np.random.default_rng(seed)
    law = fit_law(data, targets=points, rng=rng)
    at = (asked.r, asked.length, asked.t)
    drawn = law.average_samples.predict(*at)
    if asked.of_runs:
        low, high = law.average_samples.run_interval(*at, rng, LEVEL)
    else:
        low, high = law.average_samples.interval(*at, LEVEL)
    middle = np.median(drawn, axis=0)
    # A run's own noise is part of the error that is measured at runs.
    spread = (high - low) / (2.0 * 1.645) * np.sqrt(2.0 / np.pi)
    return {
        "low": low,
        "high": high,
        "claimed": float(np.mean(spread)),
        "real": float(np.mean(np.abs(middle - asked.measured))),
        "status": str(law.fit.status),
    }


def examine(task: tuple[str, str, int, bool]) -> list[tuple[str, str, int, dict[str, Any]]]:
    """All sizes of one design: of who, in which world, of how many runs, what was found."""
    world, how, seed, with_rivals = task
    if how == "synthetic":
        designs = synthetic_designs(world, seed)
    else:
        designs = table_designs(world, how, seed)
    found: list[tuple[str, str, int, dict[str, Any]]] = []
    for n, (data, asked) in designs.items():
        one = of_law(data, asked, seed)
        rows = {"pmlray": one}
        if with_rivals:
            for name, rival in RIVALS.items():
                low, high = rival(data, asked)
                rows[name] = {"low": low, "high": high}
        for name, row in rows.items():
            inside = (row["low"] <= asked.measured) & (asked.measured <= row["high"])
            row["hold"] = float(np.mean(inside))
            row["score"] = interval_score(row.pop("low"), row.pop("high"), asked.measured)
            found.append((name, f"{world} {how}", n, row))
    return found


def tallies(tasks: Sequence[tuple[str, str, int, bool]], jobs: int) -> dict[str, Any]:
    """Every task's findings by world, who and size."""
    kept: dict[str, dict[str, dict[int, Tally]]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for rows in pool.map(examine, tasks):
            for who, world, n, row in rows:
                for name in (world, f"all {world.rsplit(' ', 1)[1]}"):
                    tally = kept.setdefault(name, {}).setdefault(who, {}).setdefault(n, Tally())
                    for key, value in row.items():
                        getattr(tally, key).append(value)
    return {
        world: {who: {n: t.to_json() for n, t in sizes.items()} for who, sizes in of.items()}
        for world, of in kept.items()
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def main() -> None:
    """Run the benchmark and print a table, or one JSON object."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="few designs, for some minutes")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options.add_argument("--jobs", type=int, default=2, help="processes")
    options.add_argument("--parts", nargs="*", default=["random", "v_optimal", "synthetic"])
    options.add_argument("--designs", type=int, help="of each kind; by default 100, 8 with --quick")
    chosen = options.parse_args()
    n = chosen.designs or (8 if chosen.quick else 100)
    tasks: list[tuple[str, str, int, bool]] = []
    for how in ("random", "v_optimal"):
        if how in chosen.parts:
            tasks += [(w, how, s, how == "random") for w in TABLE_WORLDS for s in range(n)]
    if "synthetic" in chosen.parts:
        tasks += [(k, "synthetic", s, False) for k in (*KINDS, INTERACTION) for s in range(n)]
    found = {**machine(), "designs": n, "sizes": list(SIZES), "worlds": tallies(tasks, chosen.jobs)}
    if chosen.json:
        print(json.dumps(found, indent=2))
        return
    for world, of in found["worlds"].items():
        print(world)
        for who, sizes in of.items():
            shown = "  ".join(f"{k}: {t['hold']:.2f} / {t['score']:.2f}" for k, t in sizes.items())
            print(f"  {who:14} {shown}")
        for k, t in of["pmlray"].items():
            print(f"    {k}: claimed {t['claimed']:.2f}, real {t['real']:.2f}, {t['by_status']}")


if __name__ == "__main__":
    main()
