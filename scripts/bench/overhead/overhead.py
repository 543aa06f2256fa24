"""What a search costs beside its training: fit, choose, store, Optuna's study, MLflow's mirror.

    python scripts/bench/overhead/overhead.py [--points 500] [--target] [--profile] [--json]

The driver's own parts (LawSearch, the store, Optuna's study on its journal, MLflow on a local
database behind its spool) search on a synthetic law whose runs take no time, in one process.
`wall_ms` is the driver's wait a point, `cpu_ms` the CPU time of all of its threads, the mirror's
too; both also by how many points were known. What comes before the first pack, as imports, and
after the last, as the report, is not in them.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pmlray.api.search_run import study_of
from pmlray.api.tracking import spooled_tracker
from pmlray.backends.mlflow.spooled_tracker import local_tracking_uri
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import prepare_search
from pmlray.design import CostModel
from pmlray.study.search.law_search import LawSearch
from scripts.bench.common.machine import machine
from tests.fakes import SyntheticRunner

# 960 cells: none has to be measured twice for want of others.
SEARCH = """\
name: overhead
task: {kind: long_context, prompt_format: plain}
model: {id: tiny-random-llama, dtype: float32}
probe: {placement: mlp, layer: 1}
space:
  lora_rank: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
  seq_len: [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
  train_steps: [50, 100, 150, 200, 300, 400, 600, 800]
sequences: [0, 1, 2, 3]
seeds: [0, 1]
budget: {gpu_seconds: 1.0e+9}
"""
TARGET = "stop={relative_interval: 1.0e-9}"
WINDOW = 100


def run(folder: Path, n_points: int, target: bool) -> dict[str, Any]:
    """One search until so many points are known; target: the law decides after every pack whether
    it is known well enough."""
    spec_file = folder / "search.yaml"
    spec_file.write_text(SEARCH)
    search = prepare_search(spec_file, [TARGET] if target else [])
    store, cost = FileStore(folder / "store"), CostModel(1e-3, prompt_tokens=0, batch_records=None)
    tracker = spooled_tracker(
        store, local_tracking_uri(store.folder), search.spec.search_id, search.spec
    )
    points = study_of(search, store, cost)
    law_search = LawSearch(search, store, points, tracker, cost, 2, lambda _: None)
    runner = SyntheticRunner(store, noise=0.05)
    n, n_packs, marks = 0, 0, [(0, time.perf_counter(), time.process_time())]
    while n < n_points and (pack := law_search.next_pack()) is not None:
        law_search.absorb(runner.run(pack))
        n, n_packs = n + len(pack.runs), n_packs + 1
        if n - marks[-1][0] >= WINDOW or n >= n_points:
            marks.append((n, time.perf_counter(), time.process_time()))
    windows = [_between(*pair) for pair in pairwise(marks)]
    return {"packs": n_packs, **_between(marks[0], marks[-1]), "windows": windows}


def _between(first: tuple[int, float, float], last: tuple[int, float, float]) -> dict[str, float]:
    n, wall, cpu = (b - a for a, b in zip(first, last, strict=True))
    return {"points": last[0], "wall_ms": 1e3 * wall / n, "cpu_ms": 1e3 * cpu / n}


def main() -> None:
    """Measure, and print a table or JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--points", type=int, default=500)
    options.add_argument("--target", action="store_true", help="the law decides after every pack")
    options.add_argument("--profile", action="store_true", help="where the time goes, on stderr")
    options.add_argument("--json", action="store_true", help="one JSON object on stdout")
    chosen = options.parse_args()
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.profile:
            profile.enable()
        measured = run(Path(folder), chosen.points, chosen.target)
        profile.disable()
    if chosen.profile:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)
    if chosen.json:
        print(json.dumps({**machine(), "target": chosen.target, **measured}, indent=2))
        return
    for window in [*measured["windows"], measured]:
        print(f"{window['points']:5d} points: {window['wall_ms']:6.1f} ms a point,"
              f" {window['cpu_ms']:6.1f} ms CPU")  # fmt: skip


if __name__ == "__main__":
    main()
