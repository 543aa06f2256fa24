"""Mirror of a store in MLflow: a parent run per search, and a child run per measurement.

Children are found by their run_key, so a restarted search adds only what is missing. Every call
raises TrackerAway while the server is unreachable.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pmlray.backends.mlflow.node_load import NodeLoad
from pmlray.backends.mlflow.parents import (
    USER,
    StudyInMlflow,
    create_parent,
    find_parent,
    login_name,
    search_all,
)
from pmlray.backends.mlflow.run_pages import share_view
from pmlray.backends.mlflow.runs import run_dataset, run_metrics, run_params, run_times
from pmlray.backends.mlflow.system_metrics import SystemMetrics, watch
from pmlray.backends.store.usable import require_own
from pmlray.config.secrets import without_credentials
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import TrackerAway
from pmlray.study.run_names import run_name, run_tags
from pmlray.types import Observation

# Limit of one request.
MOST_METRICS = 1000
# Artifact folder of a run from which PEFT loads its adapter.
ADAPTER = "adapter"
NOTE = (
    "A search or comparison: its law and what it spent are metrics by gpu_seconds, its page is"
    " among the artifacts, and each run below it is one measurement, with its adapter and its"
    " dataset. Group by `pmlray.method` or `pmlray.lora_rank`, sort by `point/lora_rank` or"
    " `delta_loss`."
)


class MlflowTracker:
    """Tracker that writes to any MLflow tracking URI.

    study: the store whose runs these are. adapters: folder whose sub-folders, named by run_key, are
    attached to the runs.
    """

    def __init__(
        self,
        uri: str,
        study: StudyInMlflow,
        spec: Mapping[str, Any],
        adapters: Path | None = None,
    ) -> None:
        self._uri, self._study, self._adapters = uri, study, adapters
        self._task: Mapping[str, Any] = spec.get("task", {})
        self._system: SystemMetrics | None = None
        with self._reached():
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment, self._parent = self._find_parent(spec)
            self._mirrored = self._mirrored_keys()
            self._page = share_view(
                self._client, uri, self._experiment, self._parent, study.store_id, spec
            )
        # MLflow's run ids of the runs in training, by run_key.
        self._live: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """Tracking URI."""
        return self._uri

    @property
    def identity(self) -> str:
        """Id of the parent run, which changes if the database is lost."""
        return self._parent

    @property
    def page(self) -> str:
        """Address of the table of the runs; see `share_view`."""
        return self._page

    @property
    def run_keys(self) -> frozenset[str]:
        """Keys of the measurements that MLflow has."""
        return frozenset(self._mirrored)

    def start(self) -> None:
        """Mark the search as running (again), and start sampling this machine."""
        with self._reached():
            self._client.update_run(self._parent, status="RUNNING")
            self._system = watch(self._parent, self._uri)

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations as child runs; those already there are left alone."""
        with self._reached():
            for observation in observations:
                if observation.run_key not in self._mirrored:
                    self._log_child(observation)
                    self._mirrored.add(observation.run_key)

    def live(self, runs: Sequence[Mapping[str, Any]], time_ms: int) -> None:
        """Log the loss of runs in training, nats per token, at their present step."""
        with self._reached():
            for row in runs:
                key = row["run_key"]
                if key in self._mirrored:
                    continue
                if key not in self._live:
                    run = self._client.create_run(
                        self._experiment,
                        start_time=time_ms,
                        run_name=row["name"],
                        tags=row["tags"] | self._family(),
                    )
                    self._live[key] = run.info.run_id
                metric = Metric("loss", row["loss"], time_ms, row["steps"])
                self._client.log_batch(self._live[key], metrics=[metric])

    def _family(self) -> dict[str, str]:
        return {
            "mlflow.parentRunId": self._parent,
            "pmlray.search_id": self._study.study_id,
            USER: login_name(),
        }

    def load(self, loads: Iterable[NodeLoad]) -> None:
        """Log the load of nodes while packs trained there as system metrics of the parent run;
        the step counts seconds from its start."""
        found = tuple(loads)
        if not found:
            return
        with self._reached():
            start = self._client.get_run(self._parent).info.start_time
            rows = [
                Metric(f"system/{load.node}/{name}", value, time_ms, (time_ms - start) // 1000)
                for load in found
                for time_ms, values in load.samples
                for name, value in values.items()
            ]
            for i in range(0, len(rows), MOST_METRICS):
                self._client.log_batch(self._parent, metrics=rows[i : i + MOST_METRICS])

    def law(
        self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int | None = None
    ) -> None:
        """Log the law's parameters and interval widths, with gpu_seconds as the step.

        time_ms: when they were found, now by default. A metric logged again with the same time and
        step counts once.
        """
        self._log_metrics(metrics, gpu_seconds, time_ms)

    def progress(
        self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int | None = None
    ) -> None:
        """Log the state of the search; see `law`."""
        self._log_metrics(metrics, gpu_seconds, time_ms)

    def _log_metrics(
        self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int | None
    ) -> None:
        now = int(time.time() * 1000) if time_ms is None else time_ms
        step = round(gpu_seconds)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        with self._reached():
            self._client.log_batch(self._parent, metrics=rows)

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files to the parent run and close it as FINISHED, FAILED or KILLED."""
        with self._reached():
            if self._system is not None:
                self._system.finish()
            # Runs that are still live were left out, or have failed.
            for run_id in self._live.values():
                self._client.delete_run(run_id)
            self._live.clear()
            for path in artifacts:
                self._client.log_artifact(self._parent, str(path))
            self._client.set_terminated(self._parent, status)

    @contextmanager
    def _reached(self) -> Generator[None]:
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise TrackerAway(
                f"MLflow at {without_credentials(self._uri)} cannot be reached:"
                f" {without_credentials(str(error))[:300]}"
            ) from error

    def _find_parent(self, spec: Mapping[str, Any]) -> tuple[str, str]:
        """Return the ids of the experiment and of the parent run, made if it is not there."""
        found = find_parent(self._client, self._study)
        if found is not None:
            return found.info.experiment_id, found.info.run_id
        name, _, digest = self._study.study_id.rpartition("-")
        tags = {"mlflow.note.content": NOTE}
        served = self._uri.startswith("http")
        # The hash is first: searches of one experiment often differ in nothing else.
        run = create_parent(self._client, self._study, f"{digest} {name}".strip(), tags, served)
        params = [Param(key, value) for key, value in _flat(spec)]
        self._client.log_batch(run.info.run_id, params=params)
        self._client.log_dict(run.info.run_id, dict(spec), SEARCH_FILE)
        return run.info.experiment_id, run.info.run_id

    def _mirrored_keys(self) -> set[str]:
        """Return the run_keys of complete children; delete half-written ones, left by a kill."""
        keys = set()
        condition = f"tags.`mlflow.parentRunId` = '{self._parent}'"
        for run in search_all(self._client, [self._experiment], condition):
            if run.info.status == "FINISHED":
                keys.add(run.data.tags["pmlray.run_key"])
            else:
                self._client.delete_run(run.info.run_id)
        return keys

    def _log_child(self, o: Observation) -> None:
        now = int(time.time() * 1000)
        start, end = run_times(o, now)
        run_id, tags = self._live.pop(o.run_key, None), run_tags(o)
        if run_id is None:
            run = self._client.create_run(
                self._experiment,
                start_time=start,
                run_name=run_name(o),
                tags=tags | self._family(),
            )
            run_id = run.info.run_id
        else:
            self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
        self._client.log_batch(run_id, metrics=run_metrics(o, now), params=run_params(o))
        if (dataset := run_dataset(o, self._task)) is not None:
            self._client.log_inputs(run_id, [dataset])
        adapter = None if self._adapters is None else self._adapters / o.run_key
        # There is none in a replay, nor in a store whose adapters were deleted.
        if adapter is not None and adapter.is_dir():
            require_own(adapter.parent, adapter.name)
            self._client.log_artifacts(run_id, str(adapter), ADAPTER)
        self._client.set_terminated(run_id, end_time=end)


def _flat(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in spec.items():
        # MLflow takes no + in a key, which no placement's name has a colon in place of.
        key = key.replace("+", ":")
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            rows.append((prefix + key, str(value)))
    return rows
