"""Page of MLflow that shows a study's runs as a table with the columns that matter.

Without an address that asks for training, MLflow 3.17 opens an experiment on its GenAI pages, and
its table of runs begins without any metric. What a table shows can be told by a shared view: a tag
of the experiment that an address names, the same that the page's own button Share makes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from mlflow import MlflowClient

from pmlray.config.secrets import without_credentials

VIEW_TAG = "mlflow.sharedViewState."
# Where `mlflow ui` serves a database.
LOCAL_UI = "http://127.0.0.1:5000"
# What was measured is first: the name of a run has its point.
LAW_COLUMNS = (
    "metrics.delta_loss", "metrics.final_loss", "metrics.token_recall", "metrics.exact_recall",
    "metrics.gpu_seconds", "params.lora_rank", "params.seq_len", "params.train_steps",
    "params.placement",
)  # fmt: skip
METHOD_COLUMNS = (
    "metrics.exact_recall", "metrics.token_recall", "metrics.final_loss", "metrics.delta_loss",
    "metrics.prose_delta_loss", "metrics.gpu_seconds", "params.method", "params.learning_rate",
    "params.lora_rank", "params.seq_len", "params.train_steps",
)  # fmt: skip
# Of the charts, as a regular expression: MLflow draws every metric, constants of a run first.
CHARTS = "^(loss|delta_loss|final_loss|exact_recall|token_recall|prose_delta_loss|gpu_seconds)$"
# Runs for the law by rank; those of all methods at one point, text and seed one below the other.
LAW_ORDER, METHOD_ORDER = "metrics.point/lora_rank", "tags.pmlray.pair"


def share_view(
    client: MlflowClient,
    uri: str,
    experiment: str,
    parent: str,
    store_id: str,
    spec: Mapping[str, Any],
) -> str:
    """Keep the view of a study's runs in their experiment, and return its address.

    It shows the runs below `parent`: those of a comparison, or of a search with MemFT, with MemFT
    beside plain fine-tuning. The address is that of the server, without credentials, and for a
    database that of `mlflow ui`.
    """
    several = "points" in spec or spec.get("memft") is not None
    columns, order = (METHOD_COLUMNS, METHOD_ORDER) if several else (LAW_COLUMNS, LAW_ORDER)
    placed = bool(spec.get("space", {}).get("placement"))
    shown = [_column(name) for name in columns if placed or name != "params.placement"]
    view = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        "orderByKey": _column(order),
        "orderByAsc": True,
        "selectedColumns": shown,
        "chartsSearchFilter": CHARTS,
        "columnOrder": shown,
    }
    key = f"pmlray-{store_id}"
    client.set_experiment_tag(experiment, VIEW_TAG + key, json.dumps(view))
    asked = urlencode({"workflowType": "machine_learning", "viewStateShareKey": key})
    server = without_credentials(uri).rstrip("/") if uri.startswith("http") else LOCAL_UI
    return f"{server}/#/experiments/{experiment}/runs?{asked}"


def _column(name: str) -> str:
    """Return a column as MLflow's pages name it: params.`lora_rank`."""
    kind, _, key = name.partition(".")
    return f"{kind}.`{key}`"
