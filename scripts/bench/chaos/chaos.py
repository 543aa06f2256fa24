"""Faults of every kind on a running search: what is lost, counted twice, changed or wasted.

    python scripts/bench/chaos/chaos.py [--faults N] [--seed S] [--json]

A search of 24 points of the tiny model, submitted as a job to Ray nodes of this machine (a head and
two workers), with its store on a small file system, and MLflow on PostgreSQL. At seeded random
moments it meets a fault, until there were N; then it runs to its end, again and again submitted as
an operator would.
Every pack is then measured once more in one process, without Ray or any fault, to compare the bits.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import prepare_search
from scripts.bench.chaos.account import Account, Watch
from scripts.bench.chaos.faults import FAULTS, Scene
from scripts.bench.chaos.job import SearchJob
from scripts.bench.chaos.servers import MlflowServer, Postgres, RayNodes, SmallDisk
from tests.postgres import find_binaries

SEARCH = """\
name: chaos
task: {kind: long_context, random_ratio: 100, prompt_format: plain}
model: {id: tiny-random-llama, dtype: float32}
probe: {placement: mlp, layer: 1}
space: {lora_rank: [1, 2, 4], seq_len: [16, 32], train_steps: [STEPS]}
recipe: {learning_rate: 1e-2, stop_loss: 0, stop_gain: 0}
design: {acquisition: full_grid, n_initial: 12, pack_size: 12}
budget: {gpu_seconds: 1000000}
evaluate: {generate_max_tokens: 0, control_tokens: 0}
law: {n_bootstrap: 20}
sequences: [0, 1, 2, 3]
seeds: [0]
"""
PROFILE = "{cpus_per_pack: 1, checkpoint_seconds: 1, max_pack_failures: 100}"
# A fault must be overcome within so many seconds, or the run has failed.
RECOVERY_LIMIT = 400.0
SERVERS = {"MLflow server", "PostgreSQL server"}
# Training goes on while these are away: nobody is killed by them.
HARMLESS = SERVERS | {"disk full", "Tune driver"}


def run_chaos(
    folder: Path,
    n_faults: int,
    seed: int,
    steps: int,
    kinds: list[str],
    say: Callable[[str], None],
    workers: int = 2,
) -> dict[str, Any]:
    """Run the search through so many faults, on so many worker nodes; the account of it.

    MLflow and PostgreSQL are servers only where they are to fail.
    """
    spec, profile = folder / "chaos.yaml", folder / "profile.yaml"
    spec.write_text(SEARCH.replace("STEPS", str(steps)))
    profile.write_text(PROFILE)
    search = prepare_search(spec)
    disk = SmallDisk(folder / "disk")
    store = FileStore(disk.folder / "store")
    nodes = RayNodes(folder, workers)
    postgres = mlflow = driver = None
    try:
        if SERVERS & set(kinds) and find_binaries() is not None:
            postgres = Postgres(Path(f"{folder}-pg"))
            mlflow = MlflowServer(folder, postgres.url)
        uri = mlflow.uri if mlflow else f"sqlite:///{folder / 'mlflow.db'}"
        arguments = [str(spec), "--profile", str(profile), "--store", str(store.folder),
                     "--tracking-uri", uri]  # fmt: skip
        driver = SearchJob(nodes, arguments)
        scene = Scene(store, nodes, driver, disk, mlflow, postgres)
        watch = Watch(store)
        account = Account(seed)
        _meet_faults(scene, driver, watch, account, n_faults, kinds, say)
        say("no more faults: the search runs to its end")
        _until(lambda: watch.look() and driver.has_finished(), "the search did not end")
        subprocess.run(
            [sys.executable, "-m", "pmlray", "sync", str(store.folder), "--tracking-uri", uri],
            check=True, timeout=RECOVERY_LIMIT, capture_output=True,
        )  # fmt: skip
        return account.settle(search, scene, watch, uri, folder / "undisturbed", driver.starts)
    except RuntimeError:
        if driver is not None:
            say(driver.log()[-3000:])
        raise
    finally:
        if mlflow is not None:
            mlflow.kill()
        if postgres is not None:
            postgres.kill()
            shutil.rmtree(f"{folder}-pg", ignore_errors=True)
        nodes.kill()
        disk.close()


def _meet_faults(
    scene: Scene,
    driver: SearchJob,
    watch: Watch,
    account: Account,
    n_faults: int,
    kinds: list[str],
    say: Callable[[str], None],
) -> None:
    rng = random.Random(account.seed)
    order: list[str] = []
    _until(lambda: driver.has_finished() or watch.has_progressed(), "the search did not begin")
    while len(account.faults) < n_faults and not driver.has_finished():
        if not order:
            order = rng.sample(kinds, len(kinds))
        kind = order.pop()
        # The random moment of the fault, which is what is tested.
        time.sleep(rng.uniform(0.0, 2.0))
        unsaved, workers, began = watch.unsaved_seconds(), scene.workers(), time.monotonic()
        if not FAULTS[kind](scene):
            # Nothing of the kind is there just now.
            watch.has_progressed()
            continue
        if kind not in HARMLESS:
            _until(lambda: not set(workers) & set(scene.workers()), f"{kind} killed no worker")  # noqa: B023
        watch.look()

        def overcome() -> bool:
            return driver.has_finished() or watch.has_progressed()

        _until(overcome, f"{kind} was not overcome")
        took = time.monotonic() - began
        account.add(kind, took, 0.0 if kind in HARMLESS else unsaved)
        say(f"{len(account.faults):3d} {kind}: overcome after {took:.1f} s")


def _until(met: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + RECOVERY_LIMIT
    while not met():
        if time.monotonic() > limit:
            raise RuntimeError(f"{what} within {RECOVERY_LIMIT:.0f} s")
        # What comes back are processes of others, seen by their files and ports alone.
        time.sleep(0.1)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of every point")
    parser.add_argument("--kinds", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # Whoever ends this ends the servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="pmlray-chaos-", dir="/tmp"))
    try:
        found = run_chaos(folder, options.faults, options.seed, options.steps, options.kinds, say)
    # Whatever ends it, Ctrl-C too, is raised again: this only tells of the logs.
    except BaseException:
        say(f"logs are in {folder}")
        raise
    shutil.rmtree(folder)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'fault':24} {'times':>5} {'recover_seconds':>16} {'gpu_seconds wasted':>19}")
    for row in found["by_kind"]:
        print(f"{row['kind']:24} {row['times']:5d} {row['recover_seconds']:16.1f}"
              f" {row['gpu_seconds_wasted']:19.2f}")  # fmt: skip
    print(", ".join(f"{name} {found[name]}" for name in found if name != "by_kind"))


if __name__ == "__main__":
    main()
