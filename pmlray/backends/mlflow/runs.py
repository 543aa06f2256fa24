"""Observations as MLflow runs: times, params, metrics and dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from pmlray.types import Observation


def run_times(o: Observation, now_ms: int) -> tuple[int, int]:
    """Return the start and the end of a run's training, ms since 1970; `now_ms` for both where
    they are unknown, as in a replay."""
    if (finished := o.provenance.get("finished")) is None:
        return now_ms, now_ms
    end = round(datetime.fromisoformat(finished).timestamp() * 1000)
    return end - round(1000 * o.gpu_seconds / o.provenance["devices"]), end


def run_params(o: Observation) -> list[Param]:
    """Return the parameters that determine a run."""
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
        "dtype": o.provenance.get("dtype", ""),
        "learning_rate": o.learning_rate if o.learning_rate is not None else "",
    }
    own = {"placement": o.point.placement, "schedule": o.point.schedule}
    values |= {name: value for name, value in own.items() if value is not None}
    return [Param(key, str(value)) for key, value in values.items()]


def run_metrics(o: Observation, time_ms: int) -> list[Metric]:
    """Return the metrics of a run, with its loss by steps."""
    optional = {
        "control_delta_loss": o.control_delta_loss,
        "control_recall": o.control_recall,
        "prose_delta_loss": o.prose_delta_loss,
        "grad_norm": o.grad_norm,
        "answer_recall": o.recall.answered,
    }
    values = {
        # First, since MLflow's comparisons begin with the first metric: what the run is for.
        **({} if o.phase == "law" else {"exact_recall": o.recall.exact}),
        "delta_loss": o.delta_loss,
        "final_loss": o.final_loss,
        "base_loss": o.base_loss,
        "token_recall": o.recall.token,
        "prefix_recall": o.recall.prefix,
        "exact_recall": o.recall.exact,
        "stubborn_tokens": float(o.recall.n_stubborn),
        "gpu_seconds": o.gpu_seconds,
        "charged_steps": o.charged_steps,
        "tokens_per_second": o.tokens_per_second,
        "peak_memory_bytes": float(o.peak_memory_bytes),
        # MLflow sorts params as text, 16 before 2: its tables and charts get the point as numbers.
        "point/lora_rank": float(o.point.lora_rank),
        "point/seq_len": float(o.point.seq_len),
        "point/train_steps": float(o.point.train_steps),
        **{name: value for name, value in optional.items() if value is not None},
    }
    metrics = [Metric(key, value, time_ms, 0) for key, value in values.items()]
    return metrics + [Metric("loss", loss, time_ms, step) for step, loss in o.curve]


def run_dataset(o: Observation, task: Mapping[str, Any]) -> DatasetInput | None:
    """Return the text that a run learnt as an MLflow dataset, identified by a hash of its content.

    Its source is the task's settings. None where the hash is not known, as in a replay.
    """
    digest = o.provenance.get("content_hash")
    if digest is None:
        return None
    profile = {
        "num_rows": o.provenance.get("n_records"),
        "supervised_tokens": o.supervised_tokens,
    }
    return DatasetInput(
        Dataset(
            name=f"{o.task} sequence {o.sequence_id}",
            digest=str(digest)[:36],
            source_type="pmlray",
            source=json.dumps({**task, "sequence_id": o.sequence_id, "seq_len": o.point.seq_len}),
            profile=json.dumps(profile),
        ),
        [InputTag("mlflow.data.context", "training")],
    )
