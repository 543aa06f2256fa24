"""How busy the driver's machine is while a search runs, as MLflow's system metrics."""

from __future__ import annotations

import logging
from importlib.util import find_spec


class SystemMetrics:
    """Samples CPU, memory, disk, network and GPUs (where pynvml is) into a run, from a thread.

    On a cluster that is the head; a run's own tokens_per_second and peak_memory_bytes are measured
    where it trained. It ends by itself when the run does, or when MLflow cannot be reached.
    """

    def __init__(self, run_id: str, uri: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # That MLflow is away is told once, by whoever mirrors the search.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def finish(self) -> None:
        """Send what is left, and end."""
        self._monitor.finish()


def watch(run_id: str, uri: str) -> SystemMetrics | None:
    """Begin; None on a machine without psutil, as one that only replays and reports may be."""
    return SystemMetrics(run_id, uri) if find_spec("psutil") else None
