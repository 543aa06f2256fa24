"""MLflow as the place where people look at a search: a parent run, and a child run a measurement.

MLflow mirrors the store. Children are found by their run_key, so a search that starts again adds
only what is missing; while the server is away, observations wait for the next call.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from pmlray.types import Observation

log = logging.getLogger(__name__)

EXPERIMENT = "pmlray"
PAGE = 1000


def local_tracking_uri(store: Path) -> str:
    """The default: an SQLite file in the search's own folder."""
    return f"sqlite:///{store / 'mlflow.db'}"


class MlflowTracker:
    """A Tracker that writes to any MLflow tracking URI.

    artifacts: where the artifacts of a local database go; a server decides that itself. What is to
    be mirrored is sent from a thread of its own, in order: no pack waits for it. `finish` does, and
    raises what went wrong in the meantime, beside a server that is away.
    """

    def __init__(self, uri: str, search_id: str, spec: Mapping[str, Any], artifacts: Path) -> None:
        self._uri, self._search_id = uri, search_id
        self._client = MlflowClient(tracking_uri=uri)
        self._waiting: dict[str, Observation] = {}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._sent: list[Future[None]] = []
        self._incoming: deque[Observation] = deque()
        self._observing: Future[None] | None = None
        self._experiment = self._find_experiment(artifacts)
        self._parent = self._find_parent(spec)
        self._mirrored = self._mirrored_keys()

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self._uri

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations as child runs; those already there are left alone."""
        self._incoming.extend(observations)
        last = self._observing
        # One that has not begun takes these along: while a server is away, each would try alone.
        if last is None or last.running() or last.done():
            self._observing = self._send(self._observe)

    def law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """The law's parameters and interval widths, against gpu_seconds as the step."""
        self._send(self._law, dict(metrics), gpu_seconds)

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files to the parent run and close it as FINISHED, FAILED or KILLED."""
        self._send(self._finish, tuple(artifacts), status)
        self._sender.shutdown(wait=True)
        for sent in self._sent:
            sent.result()

    def _send(self, mirror: Callable[..., None], *what: Any) -> Future[None]:
        sent = self._sender.submit(mirror, *what)
        self._sent = [s for s in self._sent if not s.done() or s.exception()] + [sent]
        return sent

    def _observe(self) -> None:
        while self._incoming:
            observation = self._incoming.popleft()
            if observation.run_key not in self._mirrored:
                self._waiting[observation.run_key] = observation
        for key, observation in list(self._waiting.items()):
            try:
                self._log_child(observation)
            except MlflowException as error:
                log.warning("MLflow at %s took no run (%s); it is sent later", self._uri, error)
                return
            self._mirrored.add(key)
            del self._waiting[key]

    def _law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        now = int(time.time() * 1000)
        step = round(gpu_seconds)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        try:
            self._client.log_batch(self._parent, metrics=rows)
        except MlflowException as error:
            log.warning("MLflow at %s took no law metrics: %s", self._uri, error)

    def _finish(self, artifacts: Sequence[Path], status: str) -> None:
        try:
            for path in artifacts:
                self._client.log_artifact(self._parent, str(path))
            self._client.set_terminated(self._parent, status)
        except MlflowException as error:
            log.warning("MLflow at %s took no artifacts: %s", self._uri, error)

    def _find_experiment(self, artifacts: Path) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        local = self._uri.startswith("sqlite:")
        return self._client.create_experiment(
            EXPERIMENT, artifact_location=artifacts.as_uri() if local else None
        )

    def _find_parent(self, spec: Mapping[str, Any]) -> str:
        runs = self._search(f"tags.`pmlray.search_id` = '{self._search_id}' and"
                            " tags.`pmlray.kind` = 'search'")  # fmt: skip
        if runs:
            run_id = runs[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
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
