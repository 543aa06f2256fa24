"""The account of a chaos run: what was seen, what is there in the end, and what it should be."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from pmlray.api.environment.machine import machine_facts
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.measure import measure_pack
from pmlray.engine.runtime.checkpoints import step_of
from pmlray.engine.training.step import TorchStepper
from pmlray.types import Observation
from scripts.bench.chaos.faults import Scene

# What two measurements of the same run may differ in: time, and where it was.
VOLATILE = ("gpu_seconds", "tokens_per_second", "peak_memory_bytes", "provenance")


class Watch:
    """Looks at the store from outside: what was finished when, and whether training moves."""

    def __init__(self, store: FileStore) -> None:
        self._folder = store.folder
        self.finished: dict[str, bytes] = {}
        self.changed: set[str] = set()
        self._steps: dict[str, int] = {}
        self._moved_at = time.monotonic()

    def look(self) -> bool:
        """Take in what is there; always true."""
        self.has_progressed()
        return True

    def has_progressed(self) -> bool:
        """Whether a pack got further, or an observation was finished, since the last look."""
        moved = False
        for path in (self._folder / "observations").glob("*.json"):
            content = path.read_bytes()
            if path.name not in self.finished:
                self.finished[path.name], moved = content, True
            elif self.finished[path.name] != content:
                self.changed.add(path.name)
        for path in (self._folder / "checkpoints").glob("*/step-*.safetensors"):
            step = step_of(path.name)
            # After a checkpoint was cut short, steps are taken once more: these count too.
            if path.name not in self._steps:
                self._steps[path.name], moved = step, True
        if moved:
            self._moved_at = time.monotonic()
        return moved

    def unsaved_seconds(self) -> float:
        """Seconds since training was last kept."""
        self.has_progressed()
        return time.monotonic() - self._moved_at


@dataclass
class Account:
    """Every fault with how long it took to be overcome, and what it wasted, device-seconds."""

    seed: int
    faults: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, kind: str, recover_seconds: float, wasted: float) -> None:
        """Another fault was overcome."""
        self.faults.append((kind, recover_seconds, wasted))

    def settle(
        self,
        search: PreparedSearch,
        scene: Scene,
        watch: Watch,
        uri: str,
        folder: Path,
        starts: int,
    ) -> dict[str, Any]:
        """The figures of the whole run; measures every pack once more, undisturbed, in `folder`."""
        store = scene.store
        there = {path.name: path.read_bytes() for path in (store.folder / "observations").iterdir()}
        vanished = [name for name, content in watch.finished.items() if there.get(name) != content]
        observations = store.observations()
        missing = _expected(search) - {o.run_key for o in observations} - set(scene.fed_nan)
        undisturbed = _undisturbed(search, store, folder)
        differing = [o.run_key for o in observations if _bits(o) != _bits(undisturbed[o.run_key])]
        times = store.times()
        return {
            "faults": len(self.faults),
            "lost": len(set(vanished) | watch.changed) + len(missing),
            "duplicated": _duplicated(store, search, observations, uri),
            "bit_identical": not differing and len(observations) > 0,
            "gpu_seconds_wasted": round(sum(t.lost_gpu_seconds for t in times), 2),
            "recover_seconds": round(statistics.median(s for _, s, _ in self.faults), 1)
            if self.faults
            else 0.0,
            "recover_seconds_largest": round(max((s for _, s, _ in self.faults), default=0.0), 1),
            "observations": len(observations),
            "fed_nan": len(set(scene.fed_nan)),
            "failed": [f.reason for f in store.failures()],
            "driver_starts": starts,
            "stop_seconds": [round(seconds, 1) for seconds in scene.stop_seconds],
            "seed": self.seed,
            **machine_facts(),
            "by_kind": self._by_kind(),
        }

    def _by_kind(self) -> list[dict[str, Any]]:
        rows = []
        for kind in sorted({kind for kind, _, _ in self.faults}):
            own = [(s, w) for k, s, w in self.faults if k == kind]
            rows.append(
                {
                    "kind": kind,
                    "times": len(own),
                    "recover_seconds": statistics.median(s for s, _ in own),
                    "gpu_seconds_wasted": sum(w for _, w in own),
                }
            )
        return rows


def _expected(search: PreparedSearch) -> set[str]:
    return {
        search.plan_run(point, "sft", sequence_id, seed, "law").run_key
        for point in search.spec.space.points()
        for sequence_id, seed in search.spec.replicates()
    }


def _undisturbed(search: PreparedSearch, store: FileStore, folder: Path) -> dict[str, Observation]:
    """The same packs in one process, by the bare loop."""
    torch.set_num_threads(1)
    kept = FileStore(folder)
    for pack in store.plans():
        measure_pack(search, pack, kept, kept.adapters, TorchStepper, {})
    return {o.run_key: o for o in kept.observations()}


def _bits(o: Observation) -> dict[str, Any]:
    return {name: value for name, value in o.to_json().items() if name not in VOLATILE}


def _duplicated(
    store: FileStore, search: PreparedSearch, observations: tuple[Observation, ...], uri: str
) -> int:
    """Runs that MLflow, the Optuna study or the store's plans hold more than once, or that are
    missing from the first two."""
    keys = sorted(o.run_key for o in observations)
    client = MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    children = client.search_runs(
        experiments, "tags.`pmlray.kind` = 'observation'", max_results=1000
    )
    mirrored = sorted(run.data.tags["pmlray.run_key"] for run in children)
    backend = JournalFileBackend(str(store.folder / "optuna.journal"))
    with contextlib.redirect_stderr(None):
        study = optuna.load_study(study_name=search.spec.search_id, storage=JournalStorage(backend))
    trials = sorted(t.user_attrs["run_key"] for t in study.trials if t.value is not None)
    planned = [run.run_key for pack in store.plans() for run in pack.runs]
    wrong = sum(abs(found.count(key) - 1) for found in (mirrored, trials) for key in keys)
    return wrong + len(planned) - len(set(planned))
