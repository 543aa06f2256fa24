"""How a search scales: simulated clusters, with the real planner, store and tracker.

    python scripts/bench/overhead/scale.py [--devices 1 8 64 512] [--points 1000 10000]
        [--seeds 0] [--quick] [--json]

Devices live in simulated time: a run takes its tokens and steps times a rate that is drawn from the
runs of its length in a measured table. The search's own process lives in real time: while it plans
or takes in a result, that many seconds pass, and devices that wait for it idle. The search begins
with a run a device, 36 at least, and ends when its budget is spent, which is about so many points.
MLflow's client counts requests and answers nothing; files of the store are counted as they are
written and read. Devices idle before their first pack (`idle_first`), between packs, and after
their last one, while others still train: shares of all devices' time.
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.api.environment.machine import machine_facts
from pmlray.api.search_run import study_of
from pmlray.api.tracking import spooled_tracker
from pmlray.backends.mlflow import tracker as mlflow_tracker
from pmlray.backends.store import file_store
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.design import charged_steps
from pmlray.study.budget.packs import trunk_families
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import first_cost
from pmlray.study.search.replay_table import ReplayTable, read_table
from pmlray.types import Observation, Pack, PackResult, PackTimes, PlannedRun
from tests.fakes import observe

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "searches" / "tables" / "smollm2_long_context"
# Of a warm worker that begins its next pack.
PACK_START_SECONDS = 1.0
# Of a run of the grid, on average over its cells.
SECONDS_PER_POINT = 21.0


class CountingClient:
    """Stands in for MlflowClient: every call is one request."""

    requests: ClassVar[Counter[str]] = Counter()

    def __init__(self, **_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        def request(*_: Any, **__: Any) -> Any:
            self.requests[name] += 1
            if name in ("search_runs", "search_experiments"):
                return _empty_page()
            info = SimpleNamespace(run_id="0", experiment_id="0")
            return SimpleNamespace(experiment_id="0", lifecycle_stage="active", info=info)

        return request


def _empty_page() -> Any:
    """An empty page of runs or experiments."""
    page = type("Page", (list,), {"token": None})
    return page()


@dataclass
class Device:
    """When a device was busy, simulated seconds: from its first pack to the end of its last one,
    and in between."""

    first: float | None = None
    last: float = 0.0
    busy: float = 0.0


class Cluster:
    """Devices in simulated time; a pack occupies one for the time that its runs take."""

    def __init__(
        self, table: ReplayTable, n_devices: int, decay_share: float | None, seed: int
    ) -> None:
        self._decay_share = decay_share
        self._rates: dict[int, list[float]] = {}
        for row in table.rows.values():
            work = row["supervised_tokens"] * row["charged_steps"]
            self._rates.setdefault(int(row["length"]), []).append(row["gpu_seconds"] / work)
        self._rng = np.random.default_rng(seed)
        self.devices = [Device() for _ in range(n_devices)]
        self.idle = list(self.devices)
        self.running: list[tuple[float, int, PackResult, Device]] = []

    def begin(self, pack: Pack, now: float) -> None:
        """Put a pack on an idle device."""
        charged = self._charged(pack.runs)
        done = tuple(
            self._measure(run, pack.round, place, charged[run.run_key])
            for place, run in enumerate(pack.runs)
        )
        seconds = sum(o.gpu_seconds for o in done)
        times = PackTimes(pack.pack_id, pack.round, seconds, seconds + PACK_START_SECONDS)
        device = self.idle.pop()
        device.first = now if device.first is None else device.first
        device.last = now + times.wall_seconds
        device.busy += seconds
        result = PackResult(pack, done, (), times)
        heapq.heappush(self.running, (device.last, pack.round, result, device))

    def end(self) -> tuple[float, PackResult]:
        """The next pack that ends, and when."""
        ended, _, result, device = heapq.heappop(self.running)
        self.idle.append(device)
        return ended, result

    def shares(self, makespan: float) -> dict[str, float]:
        """Of all devices' time, what they trained, and what they idled where."""
        of = makespan * len(self.devices)
        first = sum(makespan if d.first is None else d.first for d in self.devices)
        after = sum(makespan - d.last for d in self.devices if d.first is not None)
        busy = sum(d.busy for d in self.devices)
        return {
            "utilisation": round(busy / of, 3),
            "idle_first": round(first / of, 3),
            "idle_between": round(1 - (busy + first + after) / of, 3),
            "idle_last": round(after / of, 3),
        }

    def _charged(self, runs: Sequence[PlannedRun]) -> dict[str, float]:
        """The steps that each run of a pack pays, where budgets share a trunk."""
        return {
            run.run_key: steps
            for family in trunk_families(runs)
            for run, steps in zip(
                family,
                charged_steps([run.point.train_steps for run in family], self._decay_share),
                strict=True,
            )
        }

    def _measure(self, run: PlannedRun, round_: int, place: int, steps: float) -> Observation:
        made = observe(run, round_, place, 0.02, 1.0)
        rate = float(self._rng.choice(self._rates[run.point.seq_len]))
        seconds = rate * run.point.seq_len * steps
        return replace(made, gpu_seconds=seconds, charged_steps=steps, token_p=())


def simulate(
    n_points: int, n_devices: int, acquisition: str, seed: int, folder: Path
) -> dict[str, Any]:
    """A search of so many points on so many devices, to its end."""
    table = read_table(TABLE.with_suffix(".csv"))
    search = _search(n_points, n_devices, acquisition)
    calls: Counter[str] = Counter()
    store, cost = FileStore(folder / "store"), first_cost(search, gpu=False)
    recipe = search.spec.recipe
    cluster = Cluster(table, n_devices, recipe.decay_share if recipe.shares_trunks else None, seed)
    planning = fed_until = 0.0
    n_done = n_packs = 0
    curve: list[tuple[int, float]] = []
    CountingClient.requests = Counter()
    with (
        mock.patch.object(mlflow_tracker, "MlflowClient", CountingClient),
        mock.patch.object(file_store, "_write_once", _counted(file_store._write_once, calls, "w")),
        mock.patch.object(file_store, "open_here", _counted(file_store.open_here, calls, "r")),
    ):
        spec = search.spec
        tracker = spooled_tracker(store, "http://127.0.0.1:9", spec.search_id, spec, "scale")
        law_search = LawSearch(
            search, store, study_of(search, store, cost), tracker, cost, 2, lambda progress: None
        )
        law_search.spread_over(n_devices)
        now = 0.0
        while True:
            while cluster.idle:
                began = time.perf_counter()
                pack = law_search.next_pack()
                took = time.perf_counter() - began
                planning, now = planning + took, now + took
                if pack is None:
                    break
                cluster.begin(pack, now)
                n_packs, fed_until = n_packs + 1, now
            if not cluster.running:
                break
            ended, result = cluster.end()
            for observation in result.observations:
                store.put(observation)
            began = time.perf_counter()
            law_search.absorb(result)
            took = time.perf_counter() - began
            planning, now = planning + took, max(now, ended) + took
            n_done += len(result.observations)
            curve.append((n_done, planning))
        makespan = max(now, 1e-9)
        tracker.finish([], "FINISHED")
    return {
        "devices": n_devices,
        "points": n_done,
        "packs": n_packs,
        "acquisition": acquisition,
        "seed": seed,
        **cluster.shares(makespan),
        "makespan_seconds": round(makespan, 1),
        "handed_out_until": round(fed_until, 1),
        "planner_seconds_per_point": planning / max(1, n_done),
        "planner_growth": _growth(curve),
        "store_writes_per_point": calls["w"] / max(1, n_done),
        "store_reads_per_point": calls["r"] / max(1, n_done),
        "mlflow_requests_per_point": CountingClient.requests.total() / max(1, n_done),
    }


def _growth(curve: list[tuple[int, float]]) -> float | None:
    """The exponent of the planner's seconds in points, over the last half of them."""
    half = [(n, s) for n, s in curve if n >= curve[-1][0] / 2 and s > 0]
    if len(half) < 3:
        return None
    n, s = np.log(np.array(half)).T
    return round(float(np.polyfit(n, s, 1)[0]), 2)


def _counted(function: Any, calls: Counter[str], kind: str) -> Any:
    def counted(*arguments: Any) -> Any:
        calls[kind] += 1
        return function(*arguments)

    return counted


def _search(n_points: int, n_devices: int, acquisition: str) -> PreparedSearch:
    cells = 6 * 6 * 3
    # Of every cell twice as many replicates as are wanted: which runs there are is no limit.
    sequences = -(-2 * n_points // cells)
    return prepare_search(
        TABLE.with_suffix(".yaml"),
        [
            "model={id: tiny-random-llama, dtype: float32}",
            "probe.layer=1",
            f"design={{acquisition: {acquisition}, n_initial: {max(36, n_devices)}}}",
            f"budget.gpu_seconds={SECONDS_PER_POINT * n_points}",
            "law={forms: [ceiling], n_bootstrap: 20}",
            f"sequences={list(range(sequences))}",
        ],
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--points", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--acquisition", default="v_optimal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs' rates")
    parser.add_argument("--quick", action="store_true", help="100 and 200 points, 1 and 64 devices")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.devices, options.points = [1, 64], [100, 200]
    logging.disable(logging.WARNING)
    rows = []
    for n_points, n_devices, seed in product(options.points, options.devices, options.seeds):
        with tempfile.TemporaryDirectory(prefix="pmlray-scale-") as folder:
            rows.append(simulate(n_points, n_devices, options.acquisition, seed, Path(folder)))
        if not options.json:
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if options.json:
        print(json.dumps({"rows": rows, **machine_facts()}, indent=2))


if __name__ == "__main__":
    main()
