"""Tracker of a study: its MLflow URI, and a mirror that never delays training."""

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
from pmlray.config.tracking_address import tracking_address


def tracking_uri_for(store: Path, profile: ClusterProfile, option: str | None) -> str:
    """Return the URI of MLflow.

    The first of: the option, MLFLOW_TRACKING_URI, the profile's, a database in the store. SpecError
    for one of a kind that MLflow does not take: nothing would ever arrive there.
    """
    if option:
        return tracking_address(option, "--tracking-uri")
    if of_environment := os.environ.get("MLFLOW_TRACKING_URI"):
        return tracking_address(of_environment, "MLFLOW_TRACKING_URI")
    # A profile's was checked when it was read.
    return profile.tracking_uri or local_tracking_uri(store)


def tracking_experiment_for(profile: ClusterProfile, name: str) -> str:
    """Return the name of the experiment of MLflow for a new study.

    The first of: MLFLOW_EXPERIMENT_NAME, the profile's, one by the name of the search. A study that
    MLflow has stays where it is.

    Example:
        >>> tracking_experiment_for(ClusterProfile(), "smoke")
        'pmlray/smoke'
    """
    of_environment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return of_environment or profile.tracking_experiment or f"pmlray/{name}"


def spooled_tracker(
    store: FileStore, uri: str, study_id: str, spec: SearchSpec | CompareSpec, experiment: str
) -> SpooledTracker:
    """Return the tracker of a study, which never waits for MLflow."""
    journal = MirrorJournal(store.folder)
    connect = mirror_of(store, journal, uri, study_id, spec, experiment)
    return SpooledTracker(store, journal, uri, experiment, connect)


def mirror_of(
    store: FileStore,
    journal: MirrorJournal,
    uri: str,
    study_id: str,
    spec: SearchSpec | CompareSpec,
    experiment: str,
) -> Callable[[], Mirror]:
    """Return a function that connects to the store's run in MLflow."""
    # The mirror sends rejected entries again: MLflow's own retries, for minutes, would only delay
    # noticing that the server is back.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Keep stdout for a command's result alone.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Report an unreachable MLflow once, not at every attempt.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    settings = spec.model_dump(mode="json")

    def connect() -> Mirror:
        # Imported here since it takes seconds, spent in the mirror's own thread.
        from pmlray.backends.mlflow.parents import StudyInMlflow
        from pmlray.backends.mlflow.tracker import MlflowTracker

        earlier = journal.earlier_identity(uri)
        study = StudyInMlflow(study_id, experiment, journal.store_id(), store.folder, earlier)
        return MlflowTracker(uri, study, settings, store.adapters)

    return connect
