"""Load of machines while a search runs, by MLflow's own monitors.

The driver's machine is watched from its process. A worker's node is sampled by the worker into the
store and mirrored with its results: no training waits for a server.
"""

from __future__ import annotations

import logging
import math
import platform
import re
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pmlray.backends.mlflow.node_load import NodeLoad, put_load

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

SAMPLE_SECONDS = 10.0
# Samples of a long pack grow apart with its age: a few hundred tell a day as thousands would.
APART = 0.01
# Shares of shorter times are noise.
SHORTEST_SECONDS = 1.0
# The thread may still be at its imports.
ANSWER_SECONDS = 1.0


class SystemMetrics:
    """Samples CPU, memory, disk, network and GPUs (where pynvml is) of the driver's machine, on a
    cluster the head, into a run, from a thread.

    It ends by itself when the run does, or when MLflow cannot be reached.
    """

    def __init__(self, run_id: str, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # An unreachable MLflow is reported once, by the tracker.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def finish(self) -> None:
        """Send what is left, and end."""
        self._monitor.finish()


def watch(run_id: str, uri: str) -> SystemMetrics | None:
    """Begin; None on a machine without psutil, as one that only replays and reports may be."""
    return SystemMetrics(run_id, uri) if find_spec("psutil") else None


class NodeSampler:
    """Samples the same of a worker's node, from a thread, for as long as the process lives.

    What goes wrong in the thread ends the samples, and nothing else.
    """

    def __init__(self) -> None:
        self._lock, self._samples = threading.Lock(), list[tuple[int, Mapping[str, float]]]()
        self._asked, self._answered = threading.Event(), threading.Event()
        self._began, self._last = time.monotonic(), -math.inf
        self._thread = threading.Thread(target=self._sample_all, name="node-load", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A pack begins; what was sampled before is none of its."""
        with self._lock:
            self._samples.clear()
            self._began = time.monotonic()

    def take(self) -> tuple[tuple[int, Mapping[str, float]], ...]:
        """Return the samples since `begin`, and now: when, in ms since 1970, and the values."""
        if self._thread.is_alive():
            self._answered.clear()
            self._asked.set()
            self._answered.wait(ANSWER_SECONDS)
        with self._lock:
            return tuple(self._samples)

    def _sample_all(self) -> None:
        monitors = node_monitors()
        for monitor in monitors:
            # The first share of a CPU is of no time at all.
            monitor.collect_metrics()
            monitor.clear_metrics()
        while True:
            asked = self._asked.wait(SAMPLE_SECONDS)
            self._asked.clear()
            now = time.monotonic()
            with self._lock:
                if is_due(now - self._last, now - self._began):
                    for monitor in monitors:
                        monitor.collect_metrics()
                    values = {k: v for m in monitors for k, v in _means(m).items()}
                    for monitor in monitors:
                        monitor.clear_metrics()
                    self._samples.append((int(time.time() * 1000), values))
                    self._last = now
            if asked:
                self._answered.set()


def _means(monitor: BaseMetricsMonitor) -> Mapping[str, float]:
    # MLflow's base class promises nothing; every monitor of it gives its metrics' means by name.
    return cast("Mapping[str, float]", monitor.aggregate_metrics())


def is_due(since_last: float, since_begin: float) -> bool:
    """Return whether a sample is worth keeping so many seconds after the last one, and into the
    pack."""
    return since_last >= max(SHORTEST_SECONDS, APART * since_begin)


def node_monitors() -> list[BaseMetricsMonitor]:
    """MLflow's monitors of this machine, with its GPUs where their driver's library is."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for of_gpus in (GPUMonitor, ROCMMonitor):
        # What they raise where there is no library, and where there is no GPU.
        with suppress(ImportError, RuntimeError):
            found.append(of_gpus())
    return found


def node_sampler() -> NodeSampler | None:
    """Begin to sample this node; None without psutil."""
    return NodeSampler() if find_spec("psutil") else None


@contextmanager
def sampled(sampler: NodeSampler | None, store: Path, round_: int) -> Generator[None]:
    """Keep in the store how busy this node is while a pack trains."""
    if sampler is None:
        yield
        return
    sampler.begin()
    try:
        yield
    finally:
        if samples := sampler.take():
            put_load(store, NodeLoad(round_, node_name(), samples))


def node_name() -> str:
    """This node as metrics name it."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()).strip(".-") or "node"
