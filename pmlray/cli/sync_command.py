"""`pmlray sync`: bring MLflow and the Optuna study to what the store holds."""

from __future__ import annotations

from pathlib import Path

import typer

from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.secrets import no_password


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
    # Loads MLflow and Optuna.
    from pmlray.api.sync import sync_store

    found = sync_store(store.absolute(), tracking_uri, optuna_storage)
    trials = found["optuna_trials"]
    study = "no Optuna study" if trials is None else f"{trials} trials in the Optuna study"
    emit(
        found,
        f"{found['sent']} entries sent to MLflow, which has {found['observations']} observations;"
        f" {study}",
        as_json,
    )
