"""MLflow as the place where people look at a search: a parent run, and a child run a measurement.

MLflow mirrors the store. Children are found by their run_key, so a search that starts again adds
only what is missing. Every call raises TrackerAway while the server is away.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pmlray.errors import TrackerAway
from pmlray.study.report_tables import without_credentials
from pmlray.types import Observation

EXPERIMENT = "pmlray"
PAGE = 1000


def local_tracking_uri(store: Path) -> str:
    """The default: an SQLite file in the search's own folder."""
    return f"sqlite:///{store / 'mlflow.db'}"


class MlflowTracker:
    """A Tracker that writes to any MLflow tracking URI.

    artifacts: where they go beside a database; a server decides that itself.
    """

    def __init__(self, uri: str, search_id: str, spec: Mapping[str, Any], artifacts: Path) -> None:
        self._uri, self._search_id = uri, search_id
        with self._reached():
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_experiment(artifacts)
            self._parent = self._find_parent(spec)
            self._mirrored = self._mirrored_keys()

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._uri

    @property
    def identity(self) -> str:
        """The parent run's id: another one, where the database was lost."""
        return self._parent

    def start(self) -> None:
        """The search runs (again)."""
        with self._reached():
            self._client.update_run(self._parent, status="RUNNING")

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations as child runs; those already there are left alone."""
        with self._reached():
            for observation in observations:
                if observation.run_key not in self._mirrored:
                    self._log_child(observation)
                    self._mirrored.add(observation.run_key)

    def law(
        self, metrics: Mapping[str, float], gpu_seconds: float, time_ms: int | None = None
    ) -> None:
        """The law's parameters and interval widths, against gpu_seconds as the step.

        time_ms: when they were found, now by default. A metric of the same time and step is one.
        """
        now = int(time.time() * 1000) if time_ms is None else time_ms
        step = round(gpu_seconds)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        with self._reached():
            self._client.log_batch(self._parent, metrics=rows)

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files to the parent run and close it as FINISHED, FAILED or KILLED."""
        with self._reached():
            for path in artifacts:
                self._client.log_artifact(self._parent, str(path))
            self._client.set_terminated(self._parent, status)

    @contextmanager
    def _reached(self) -> Iterator[None]:
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
        # Without a server, MLflow would put them into whatever folder this runs in.
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
            tags={"pmlray.search_id": self._search_id, "pmlray.kind": "search"},
        )
        params = [Param(key, value) for key, value in _flat(spec)]
        self._client.log_batch(run.info.run_id, params=params)
        self._client.log_dict(run.info.run_id, dict(spec), "search.json")
        return run.info.run_id

    def _mirrored_keys(self) -> set[str]:
        """Children that are complete; a half-written one, left by a kill, is removed."""
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
        point = o.point
        name = (
            f"{o.phase} {o.method} lora_rank={point.lora_rank} seq_len={point.seq_len}"
            f" train_steps={point.train_steps} sequence={o.sequence_id} seed={o.seed}"
        )
        run = self._client.create_run(
            self._experiment,
            run_name=name,
            tags={
                "mlflow.parentRunId": self._parent,
                "pmlray.search_id": self._search_id,
                "pmlray.kind": "observation",
                "pmlray.run_key": o.run_key,
                "pmlray.method": o.method,
                "pmlray.phase": o.phase,
                "pmlray.lora_rank": str(point.lora_rank),
                "pmlray.seq_len": str(point.seq_len),
                "pmlray.sequence_id": str(o.sequence_id),
                "pmlray.seed": str(o.seed),
            },
        )
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in _metrics(o).items()]
        metrics += [Metric("loss", loss, now, step) for step, loss in o.curve]
        self._client.log_batch(run.info.run_id, metrics=metrics, params=_params(o))
        self._client.set_terminated(run.info.run_id)


def _params(o: Observation) -> list[Param]:
    values = {
        "lora_rank": o.point.lora_rank,
        "seq_len": o.point.seq_len,
        "train_steps": o.point.train_steps,
        "method": o.method,
        "task": o.task,
        "sequence_id": o.sequence_id,
        "seed": o.seed,
        "round": o.round,
        "model": o.provenance.get("model", ""),
        "learning_rate": o.learning_rate if o.learning_rate is not None else "",
    }
    return [Param(key, str(value)) for key, value in values.items()]


def _metrics(o: Observation) -> dict[str, float]:
    optional = {
        "control_delta_loss": o.control_delta_loss,
        "control_recall": o.control_recall,
        "prose_delta_loss": o.prose_delta_loss,
        "grad_norm": o.grad_norm,
    }
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "base_loss": o.base_loss,
        "final_loss": o.final_loss,
        "delta_loss": o.delta_loss,
        "token_recall": o.recall.token,
        "prefix_recall": o.recall.prefix,
        "exact_recall": o.recall.exact,
        "stubborn_tokens": float(o.recall.n_stubborn),
        "gpu_seconds": o.gpu_seconds,
        "tokens_per_second": o.tokens_per_second,
        "peak_memory_bytes": float(o.peak_memory_bytes),
    }


def _flat(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in spec.items():
        if isinstance(value, Mapping):
            rows.extend(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            rows.append((prefix + key, str(value)))
    return rows
