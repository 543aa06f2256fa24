"""The tracker of a study: where its MLflow is, and a mirror that no training waits for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.spooled_tracker import Mirror, SpooledTracker, local_tracking_uri
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.compare_spec import CompareSpec


def tracking_uri_for(store: Path, profile: ClusterProfile, option: str | None) -> str:
    """The option, MLFLOW_TRACKING_URI, the profile's, or a database in the store: first wins."""
    found = option or os.environ.get("MLFLOW_TRACKING_URI") or profile.tracking_uri
    return found or local_tracking_uri(store)


def spooled_tracker(
    store: FileStore, uri: str, name: str, spec: SearchSpec | CompareSpec
) -> SpooledTracker:
    """The tracker of a study, which never waits for MLflow."""
    return SpooledTracker(
        store, MirrorJournal(store.folder), uri, mirror_of(store, uri, name, spec)
    )


def mirror_of(
    store: FileStore, uri: str, name: str, spec: SearchSpec | CompareSpec
) -> Callable[[], Mirror]:
    """Return a function that connects to the study's run in MLflow."""
    # An entry that is not taken is sent again: MLflow's own minutes of retries would only hide that
    # the server is back.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # stdout is for a command's result alone.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # An unreachable MLflow is reported once, not at every try.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    artifacts = store.folder / "mlflow-artifacts"
    settings = spec.model_dump(mode="json")

    def connect() -> Mirror:
        # Takes seconds, in the mirror's own thread.
        from pmlray.backends.mlflow.tracker import MlflowTracker

        return MlflowTracker(uri, name, settings, artifacts, store.adapters)

    return connect
