"""`pmlray sync`: bring MLflow and the Optuna study to what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.secrets import no_password
from pmlray.errors import StoreError


def sync(
    store: Path = typer.Argument(..., help="Folder of a search's or a comparison's results."),
    tracking_uri: str = typer.Option(
        None,
        callback=no_password,
        help="MLflow; default: MLFLOW_TRACKING_URI, else the database in the store.",
    ),
    optuna_storage: str = typer.Option(
        None,
        callback=no_password,
        help="Database URL for the Optuna study; default: the journal in the store.",
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Send MLflow what it missed, or all of it if it was lost, and make the Optuna study anew.

    Not while the search runs: it sends its own. One that was killed before it could end is KILLED
    there then, and its runs without a result are gone, as at the end of any search.
    """
    found = sync_store(store.absolute(), tracking_uri, optuna_storage)
    trials = found["optuna_trials"]
    study = "no Optuna study" if trials is None else f"{trials} trials in the Optuna study"
    emit(
        found,
        f"{found['sent']} entries sent to MLflow, which has {found['observations']} observations;"
        f" {study}",
        as_json,
    )


def sync_store(
    folder: Path, tracking_uri: str | None, optuna_storage: str | None
) -> dict[str, Any]:
    """Send the journal and make the study anew; returns what was done.

    TrackerAway while MLflow is away; StoreError where a search is running on the store.
    """
    from pmlray.api import comparison_run, search_run
    from pmlray.backends.mlflow.journal import MirrorJournal
    from pmlray.backends.mlflow.spooled_tracker import Replay
    from pmlray.backends.store.file_store import FileStore
    from pmlray.config import ClusterProfile, SearchSpec
    from pmlray.config.compare_spec import CompareSpec
    from pmlray.config.prepared_search import prepare_search
    from pmlray.config.stored_files import read_kept
    from pmlray.study.search.plan import first_cost

    search_file, comparison_file = folder / search_run.SPEC_FILE, folder / comparison_run.SPEC_FILE
    if not search_file.is_file() and not comparison_file.is_file():
        raise StoreError(f"{folder} is no store of a search or a comparison")
    store, trials = FileStore(folder), None
    uri = search_run.tracking_uri_for(folder, ClusterProfile(), tracking_uri)
    with store.driver_lock():
        if search_file.is_file():
            spec = read_kept(SearchSpec, search_file)
            connect = search_run.mirror_of(store, uri, spec.search_id, spec)
            search = prepare_search(search_file).settled(gpu=False)
            cost = first_cost(search, gpu=False)
            trials = search_run.study_of(search, store, cost, optuna_storage).n_trials
        else:
            comparison = read_kept(CompareSpec, comparison_file)
            connect = search_run.mirror_of(store, uri, comparison.compare_id, comparison)
        journal, observations = MirrorJournal(folder), store.observations()
        known = journal.run_keys()
        if missing := [o.run_key for o in observations if o.run_key not in known]:
            journal.add("observe", run_keys=missing)
        if journal.is_open():
            # Whoever drove it was killed before it could say so: what trained, and runs that were
            # left out, would be shown as running for ever.
            journal.add("finish", artifacts=[], status="KILLED")
        sent = Replay(store, journal, uri, connect).send()
    return {
        "store": str(folder),
        "sent": sent,
        "observations": len(observations),
        "optuna_trials": trials,
    }
