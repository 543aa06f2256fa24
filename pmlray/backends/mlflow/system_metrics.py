"""Load of machines while a search runs, sampled by MLflow's own monitors.

The driver samples its own machine. A worker samples its node into the store, from where the samples
are mirrored with its results, so that training never waits for a server.
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
# Interval between samples as a share of the pack's age: a few hundred samples suffice for a day.
APART = 0.01
# CPU shares over shorter times are noise.
SHORTEST_SECONDS = 1.0
# Longest wait for a last sample: the sampling thread may still be importing.
ANSWER_SECONDS = 1.0


class SystemMetrics:
    """Sampler of the driver's machine into a run: CPU, memory, disk, network, GPUs (with pynvml).

    On a cluster this machine is the head. The sampling thread ends by itself when the run does, or
    when MLflow cannot be reached.
    """

    def __init__(self, run_id: str, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # An unreachable MLflow is reported once, by the tracker.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def finish(self) -> None:
        """Send the remaining samples, and end."""
        self._monitor.finish()


def watch(run_id: str, uri: str) -> SystemMetrics | None:
    """Start sampling into a run; None without psutil, as where a machine only makes reports."""
    return SystemMetrics(run_id, uri) if find_spec("psutil") else None


class NodeSampler:
    """Sampler of the same metrics of a worker's node, in a thread, until the process ends.

    An error in the thread ends the sampling, and nothing else.
    """

    def __init__(self) -> None:
        self._lock, self._samples = threading.Lock(), list[tuple[int, Mapping[str, float]]]()
        self._asked, self._answered = threading.Event(), threading.Event()
        self._began, self._last = time.monotonic(), -math.inf
        self._thread = threading.Thread(target=self._sample_all, name="node-load", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin a pack, and discard earlier samples."""
        with self._lock:
            self._samples.clear()
            self._began = time.monotonic()

    def take(self) -> tuple[tuple[int, Mapping[str, float]], ...]:
        """Return the samples since `begin`, one of now included if due: time, ms since 1970, and
        values by name."""
        if self._thread.is_alive():
            self._answered.clear()
            self._asked.set()
            self._answered.wait(ANSWER_SECONDS)
        with self._lock:
            return tuple(self._samples)

    def _sample_all(self) -> None:
        monitors = node_monitors()
        for monitor in monitors:
            # Discarded: the first CPU share covers no time.
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
    # MLflow's base class declares no result; every monitor returns its metrics' means by name.
    return cast("Mapping[str, float]", monitor.aggregate_metrics())


def is_due(since_last: float, since_begin: float) -> bool:
    """Return whether a sample is due, by the seconds since the last one and since the pack
    began."""
    return since_last >= max(SHORTEST_SECONDS, APART * since_begin)


def node_monitors() -> list[BaseMetricsMonitor]:
    """Return MLflow's monitors of this machine, with its GPUs where their library is installed."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for of_gpus in (GPUMonitor, ROCMMonitor):
        # Raised where there is no library, and where there is no GPU.
        with suppress(ImportError, RuntimeError):
            found.append(of_gpus())
    return found


def node_sampler() -> NodeSampler | None:
    """Start sampling this node; None without psutil."""
    return NodeSampler() if find_spec("psutil") else None


@contextmanager
def sampled(sampler: NodeSampler | None, store: Path, round_: int) -> Generator[None]:
    """Sample the load of this node while a pack trains, and keep it in the store."""
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
    """Return the name of this node in metrics."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()).strip(".-") or "node"
