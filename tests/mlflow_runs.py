"""What an MLflow holds, by its own client, in whatever experiments."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Run


def all_runs(client: MlflowClient, condition: str = "", order: str | None = None) -> list[Run]:
    """Every run of every experiment that meets a condition."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    ordered = None if order is None else [order]
    return list(client.search_runs(experiments, condition, max_results=1000, order_by=ordered))
