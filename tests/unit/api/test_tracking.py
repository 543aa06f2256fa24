"""Which MLflow a study goes to, under which name, and how its result says where to look."""

from __future__ import annotations

from typing import Any

import pytest

from pmlray.api.tracking import tracking_experiment_for
from pmlray.cli.describe.law import tracking_lines
from pmlray.config import ClusterProfile

PAGE = "http://127.0.0.1:5000/#/experiments/1/runs"


def test_the_experiment_is_the_environment_s_the_profile_s_or_by_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    bare, project = ClusterProfile(), ClusterProfile(tracking_experiment="facts of 2026")
    assert tracking_experiment_for(bare, "smoke") == "pmlray/smoke"
    assert tracking_experiment_for(project, "smoke") == "facts of 2026"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lab")
    assert tracking_experiment_for(project, "smoke") == "lab"


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        ({"tracking_uri": "http://m:5000", "tracking_page": PAGE}, [f"runs in MLflow: {PAGE}"]),
        (
            {"tracking_uri": "sqlite:////a/mlflow.db", "tracking_page": PAGE},
            ["MLflow: mlflow ui --backend-store-uri sqlite:////a/mlflow.db",
             f"runs in MLflow: {PAGE}"],
        ),
        # A server that was not reached, and a report written anew.
        ({"tracking_uri": "http://m:5000", "tracking_page": None}, ["MLflow: http://m:5000"]),
        ({}, []),
    ],
)  # fmt: skip
def test_a_result_says_where_its_runs_are_shown(facts: dict[str, Any], lines: list[str]) -> None:
    assert tracking_lines(facts) == lines
