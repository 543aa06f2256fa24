"""State of a running search, read from its mirror in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pmlray.backends.mlflow.parents import newest_parent
from pmlray.config.search_spec import SearchSpec
from pmlray.config.secrets import without_credentials
from pmlray.config.stored_files import SEARCH_FILE, read_stored
from pmlray.errors import StoreError, TrackerAway

ASKING_ERRORS = (MlflowException, SQLAlchemyError, OSError)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """State of a search in MLflow: status and newest metrics of its parent run."""

    status: str
    metrics: Mapping[str, float]


class MlflowWatch:
    """Reader of one search in MLflow; StoreError if there is none, TrackerAway if unreachable.

    `spec`: the search's spec, as stored in its parent run.
    """

    def __init__(self, uri: str, search_id: str) -> None:
        self._uri = uri
        try:
            self._client = MlflowClient(tracking_uri=uri)
            run = newest_parent(self._client, search_id)
            if run is None:
                raise StoreError(
                    f"MLflow at {without_credentials(uri)} knows no search {search_id}; pmlray"
                    " validate SEARCH.yaml tells the id of a search, pmlray list those of a cluster"
                )
            self._run_id: str = run.info.run_id
            with TemporaryDirectory() as folder:
                file = self._client.download_artifacts(self._run_id, SEARCH_FILE, folder)
                try:
                    self.spec = read_stored(SearchSpec, Path(file))
                except StoreError as error:
                    raise StoreError(
                        f"what MLflow holds of {search_id} is no search that this version of pmlray"
                        " can read; a comparison is watched by its store"
                    ) from error
        except ASKING_ERRORS as error:
            raise _away(self._uri, error) from error

    def look(self) -> Mirrored:
        """Return the search's present state."""
        try:
            parent = self._client.get_run(self._run_id)
        except ASKING_ERRORS as error:
            raise _away(self._uri, error) from error
        return Mirrored(parent.info.status, parent.data.metrics)


def experiments(uri: str) -> int:
    """Return the number of experiments that MLflow shows to this user; TrackerAway where it does
    not answer."""
    try:
        return len(MlflowClient(tracking_uri=uri).search_experiments())
    except ASKING_ERRORS as error:
        raise _away(uri, error) from error


def _away(uri: str, error: Exception) -> TrackerAway:
    return TrackerAway(
        f"MLflow at {without_credentials(uri)} cannot be asked:"
        f" {without_credentials(str(error))[:300]}; is the address right, and are"
        " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set?"
    )
