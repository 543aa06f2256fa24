"""The faults of a chaos run: each is done to a running search, and what it needs afterwards is put
back, as an operator or a cluster's manager would."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from safetensors.torch import load, save

from pmlray.backends.store.file_store import FileStore
from pmlray.engine.runtime.checkpoints import file_name, newest_first
from scripts.bench.chaos.servers import (
    MlflowServer,
    Postgres,
    RayNodes,
    SmallDisk,
    command_of,
    descendants,
)

# How long a server, or a disk's space, stays away.
AWAY_SECONDS = 8.0
# Within which a killed worker's pack is taken over.
SUCCESSOR_SECONDS = 200.0


class Driver(Protocol):
    """The search's job, which can be submitted again."""

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> float: ...


@dataclass
class Scene:
    """All that faults are done to. `fed_nan`: the runs that were made to fail. `stop_seconds`: how
    long the search took to leave each time that it was asked to."""

    store: FileStore
    nodes: RayNodes
    driver: Driver
    disk: SmallDisk
    mlflow: MlflowServer | None
    postgres: Postgres | None
    fed_nan: list[str] = field(default_factory=list)
    stop_seconds: list[float] = field(default_factory=list)

    def checkpoints(self) -> list[Path]:
        """Whole or not, the newest checkpoint of each pack, and those before them."""
        folder = self.store.folder / "checkpoints"
        found = []
        for pack in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                found += [pack / name for name in newest_first(p.name for p in pack.iterdir())]
        return found

    def workers(self) -> list[int]:
        """The processes that hold a run's lease."""
        pids = set()
        for path in (self.store.folder / "leases").glob("*/*"):
            if path.parent.name != "driver" and path.name.isdigit():
                with contextlib.suppress(OSError, ValueError, KeyError):
                    pids.add(json.loads(path.read_bytes())["pid"])
        return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


Fault = Callable[[Scene], bool]


def kill_worker(scene: Scene) -> bool:
    return _kill(scene.workers())


def kill_tune_driver(scene: Scene) -> bool:
    return _kill(scene.nodes.processes("ray::ImplicitFunc"))


def kill_raylet(scene: Scene) -> bool:
    """The node on which a worker trains goes, and another comes."""
    workers = set(scene.workers())
    for i, node in enumerate(scene.nodes.workers):
        below = descendants(node.pid)
        if workers & set(below):
            raylets = [pid for pid in below if "raylet/raylet" in command_of(pid)]
            # What follows from it is Ray's to do.
            killed = _kill(raylets)
            scene.nodes.workers[i] = scene.nodes.start_worker()
            return killed
    return False


def kill_driver(scene: Scene) -> bool:
    scene.driver.kill()
    scene.driver.start()
    return True


def stop_job(scene: Scene) -> bool:
    """`ray job stop`, and submitting again."""
    scene.stop_seconds.append(scene.driver.stop())
    scene.driver.start()
    return True


def lose_cluster(scene: Scene) -> bool:
    """Every node goes at once; the search is submitted to a new cluster on the same storage."""
    scene.nodes.kill()
    scene.nodes.start()
    scene.driver.start()
    return True


def away(of: Callable[[Scene], tuple[Callable[[], None], Callable[[], None]] | None]) -> Fault:
    """Something that is taken away for a while; `of`: how it goes and comes back, if it is there.

    Training goes on meanwhile.
    """

    def fault(scene: Scene) -> bool:
        ways = of(scene)
        if ways is None:
            return False
        go, come_back = ways
        go()
        time.sleep(AWAY_SECONDS)
        come_back()
        return True

    return fault


def cut_checkpoint(scene: Scene) -> bool:
    """The newest is cut short as its worker dies."""
    found, workers = scene.checkpoints(), scene.workers()
    if not found or not _kill(workers):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.truncate(found[0], found[0].stat().st_size // 2)
    return True


def feed_nan(scene: Scene) -> bool:
    """One adapter of the checkpoint from which a killed worker's pack goes on is NaN."""
    found, workers = scene.checkpoints(), scene.workers()
    if not found or not _kill(workers):
        return False
    try:
        content = found[0].read_bytes()
    except FileNotFoundError:
        return False
    fed, name, poisoned = with_nan(content)
    plan = scene.store.folder / "plans" / f"{found[0].parent.name}.json"
    scene.fed_nan.append(json.loads(plan.read_bytes())["runs"][fed]["run_key"])
    (found[0].parent / name).write_bytes(poisoned)
    found[0].unlink()
    return True


def with_nan(checkpoint: bytes) -> tuple[int, str, bytes]:
    """A pack's checkpoint with NaN in an adapter that trains: the place of its run in the pack, and
    the file's name and content."""
    length = int.from_bytes(checkpoint[:8], "little")
    metadata = json.loads(checkpoint[8 : 8 + length])["__metadata__"]
    facts, tensors = json.loads(metadata["facts"]), load(checkpoint)
    fed = facts["active"][0]
    tensors["adapters.factors.0.A"][facts["adapters"]["holders"].index(fed)] = float("nan")
    poisoned = save(tensors, metadata)
    return fed, file_name(int(metadata["step"]), poisoned), poisoned


def run_out_of_memory(scene: Scene) -> bool:
    """Who takes a killed worker's pack over may have no more memory than it has when it begins.

    A worker that trains already takes its steps in memory that it has.
    """
    before = scene.workers()
    if not _kill(before):
        return False
    end = time.monotonic() + SUCCESSOR_SECONDS
    while not (successors := set(scene.workers()) - set(before)):
        if time.monotonic() > end:
            return False
        # Seen by its lease alone, and it loads its base for about a second.
        time.sleep(0.02)
    for pid in successors:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    return True


def _kill(pids: list[int]) -> bool:
    for pid in pids[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


FAULTS: dict[str, Fault] = {
    "Train worker": kill_worker,
    "Tune driver": kill_tune_driver,
    "raylet": kill_raylet,
    "whole cluster": lose_cluster,
    "job's driver": kill_driver,
    "job stop": stop_job,
    "MLflow server": away(lambda scene: scene.mlflow and (scene.mlflow.kill, scene.mlflow.start)),
    "PostgreSQL server": away(
        lambda scene: scene.postgres and (scene.postgres.kill, scene.postgres.start)
    ),
    "disk full": away(
        lambda scene: (scene.disk.fill, scene.disk.free) if scene.disk.mounted else None
    ),
    "checkpoint cut short": cut_checkpoint,
    "NaN": feed_nan,
    "out of memory": run_out_of_memory,
}
