"""Synchronisation of MLflow and the Optuna study with a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pmlray.api.search_run import study_of
from pmlray.api.tracking import mirror_of, tracking_experiment_for, tracking_uri_for
from pmlray.backends.mlflow.journal import MirrorJournal
from pmlray.backends.mlflow.spooled_tracker import Replay
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import prepare_search
from pmlray.config.stored_files import COMPARISON_FILE, SEARCH_FILE, read_stored
from pmlray.errors import StoreError
from pmlray.study.search.plan import first_cost


def sync_store(
    folder: Path, tracking_uri: str | None, optuna_storage: str | None
) -> dict[str, Any]:
    """Send the journal to MLflow, and what it lacks, and rebuild the Optuna study; return a
    summary, which counts the observations that MLflow has.

    TrackerAway while MLflow is unreachable; StoreError where a search is running on the store.
    """
    search_file, comparison_file = folder / SEARCH_FILE, folder / COMPARISON_FILE
    if not search_file.is_file() and not comparison_file.is_file():
        raise StoreError(f"{folder} is no store of a search or a comparison")
    store, trials = FileStore(folder), None
    profile = ClusterProfile()
    uri = tracking_uri_for(folder, profile, tracking_uri)
    with store.driver_lock():
        journal = MirrorJournal(folder)
        if search_file.is_file():
            of_search = read_stored(SearchSpec, search_file)
            spec, study_id = of_search, of_search.search_id
            search = prepare_search(search_file).settled(gpu=False)
            cost = first_cost(search, gpu=False)
            trials = study_of(search, store, cost, optuna_storage).n_trials
        else:
            of_comparison = read_stored(CompareSpec, comparison_file)
            spec, study_id = of_comparison, of_comparison.compare_id
        experiment = journal.experiment() or tracking_experiment_for(profile, spec.name)
        observations, known = store.observations(), journal.run_keys()
        if missing := [o.run_key for o in observations if o.run_key not in known]:
            journal.add("observe", run_keys=missing)
        if journal.is_open():
            # Its driver was killed before it closed the journal: without this entry its open runs
            # would be shown as running forever.
            journal.add("finish", artifacts=[], status="KILLED")
        connect = mirror_of(store, journal, uri, study_id, spec, experiment)
        replay = Replay(store, journal, uri, connect)
        sent, in_mlflow = replay.send(), replay.complete()
    return {
        "store": str(folder),
        "sent": sent,
        "observations": in_mlflow,
        "tracking_page": replay.page,
        "optuna_trials": trials,
    }
