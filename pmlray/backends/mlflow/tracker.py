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
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pmlray.backends.mlflow.node_load import NodeLoad
from pmlray.backends.mlflow.runs import run_dataset, run_metrics, run_params, run_times
from pmlray.backends.mlflow.system_metrics import SystemMetrics, watch
from pmlray.backends.store.usable import require_own
from pmlray.config.secrets import without_credentials
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.errors import TrackerAway
from pmlray.study.run_names import run_name, run_tags
from pmlray.types import Observation

EXPERIMENT = "pmlray"
PAGE = 1000
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

    artifacts: their folder where the URI is a database; a server decides that itself.
    adapters: folder whose sub-folders, named by run_key, are attached to the runs.
    """

    def __init__(
        self,
        uri: str,
        search_id: str,
        spec: Mapping[str, Any],
        artifacts: Path,
        adapters: Path | None = None,
    ) -> None:
        self._uri, self._search_id, self._adapters = uri, search_id, adapters
        self._task: Mapping[str, Any] = spec.get("task", {})
        self._system: SystemMetrics | None = None
        with self._reached():
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_experiment(artifacts)
            self._parent = self._find_parent(spec)
            self._mirrored = self._mirrored_keys()
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
        return {"mlflow.parentRunId": self._parent, "pmlray.search_id": self._search_id}

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

    def _find_experiment(self, artifacts: Path) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        # Without a server, MLflow would put artifacts into the current working folder.
        served = self._uri.startswith("http")
        return self._client.create_experiment(
            EXPERIMENT, artifact_location=None if served else artifacts.as_uri()
        )

    def _find_parent(self, spec: Mapping[str, Any]) -> str:
        runs = self._search(f"tags.`pmlray.search_id` = '{self._search_id}' and"
                            " tags.`pmlray.kind` = 'search'")  # fmt: skip
        if runs:
            return runs[0].info.run_id
        run = self._client.create_run(
            self._experiment,
            run_name=self._search_id,
            tags={
                "pmlray.search_id": self._search_id,
                "pmlray.kind": "search",
                "mlflow.note.content": NOTE,
            },
        )
        params = [Param(key, value) for key, value in _flat(spec)]
        self._client.log_batch(run.info.run_id, params=params)
        self._client.log_dict(run.info.run_id, dict(spec), SEARCH_FILE)
        return run.info.run_id

    def _mirrored_keys(self) -> set[str]:
        """Return the run_keys of complete children; delete half-written ones, left by a kill."""
        keys = set()
        for run in self._search(f"tags.`mlflow.parentRunId` = '{self._parent}'"):
            if run.info.status == "FINISHED":
                keys.add(run.data.tags["pmlray.run_key"])
            else:
                self._client.delete_run(run.info.run_id)
        return keys

    def _search(self, condition: str) -> list[Run]:
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], condition, max_results=PAGE, page_token=token
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

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
