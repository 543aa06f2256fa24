"""Sources of a search that ran elsewhere: a cluster's storage, or MLflow."""

from __future__ import annotations

import os
import re
from pathlib import Path

import typer

from pmlray.config import load_search
from pmlray.config.secrets import no_password
from pmlray.config.tracking_address import TRACKING_SCHEMES
from pmlray.errors import SpecError

SOURCE_OPTION = typer.Option(
    None,
    "--from",
    callback=no_password,
    help="The storage folder of a cluster's searches as this machine sees it, or MLflow's URI.",
)


def search_id_of(search: str) -> str:
    """Return a search's id, given as such or by its search file."""
    if is_file(search):
        return load_search(Path(search)).search_id
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", search) is None:
        raise SpecError(
            f"{search!r} is no search's id; with --from give the id that pmlray validate or pmlray"
            " list shows, or the search file"
        )
    return search


def is_file(search: str) -> bool:
    """Return whether a search is given by its file."""
    return search.endswith((".yaml", ".yml"))


def in_mlflow(source: str) -> bool:
    """Return whether a source is a URI of MLflow; otherwise it is a folder.

    SpecError for a URI that MLflow does not support. Also lowers MLflow's retries, so that an
    unreachable server is reported within seconds instead of minutes.
    """
    if "://" not in source:
        return False
    scheme = source.partition("://")[0].partition("+")[0]
    if scheme not in TRACKING_SCHEMES:
        raise SpecError(
            f"--from reads folders and MLflow ({', '.join(TRACKING_SCHEMES)}), not {scheme}://;"
            " mount that storage and give the folder"
        )
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return True
