"""Download of a search's report from an MLflow server, without access to its store."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pmlray.backends.mlflow.parents import newest_parent
from pmlray.config.secrets import without_credentials
from pmlray.errors import StoreError

REPORT_FILES = ("report.html", "report.json")


def fetch_report(uri: str, search_id: str, folder: Path) -> tuple[Path, ...]:
    """Copy report.html and report.json of a search into a folder.

    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are used where the server wants them.
    StoreError when the server cannot be reached, has no such search, or no report of it yet.
    """
    shown = without_credentials(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        run = newest_parent(client, search_id)
        if run is None:
            raise StoreError(
                f"MLflow at {shown} knows no search {search_id}; pmlray validate SEARCH.yaml tells"
                " the id of a search, pmlray list those of a cluster"
            )
        run_id, state = run.info.run_id, run.info.status
        there = {item.path for item in client.list_artifacts(run_id)}
        if not there.issuperset(REPORT_FILES):
            raise StoreError(
                f"the search {search_id} has no report in MLflow yet (its run is {state}); it is"
                " written when a search ends or is stopped. On a machine that sees its store:"
                f" pmlray report {search_id} --from STORAGE"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(
            Path(client.download_artifacts(run_id, name, str(folder))) for name in REPORT_FILES
        )
    except MlflowException as error:
        raise StoreError(
            f"MLflow at {shown} gave no report: {without_credentials(str(error))}; is the"
            " address right, and are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set?"
        ) from error
