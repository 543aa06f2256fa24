"""`pmlray report`: of a store here, or of a search that ran on a cluster."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import typer

from pmlray.cli.findings import describe_result
from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config import load_search
from pmlray.config.secrets import no_password
from pmlray.errors import SpecError

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql")


def report(
    search: str = typer.Argument(
        ..., help="A search's store; with --from, the search's id or its search file."
    ),
    source: str = typer.Option(
        None,
        "--from",
        callback=no_password,
        help="The storage folder of a cluster's searches as this machine sees it, or MLflow's URI.",
    ),
    out: Path = typer.Option(
        None, help="Folder for a report fetched from MLflow; default: runs/SEARCH_ID/report."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the report of a search again from its store, with its figures as SVG and PNG files too,
    or fetch it from MLflow."""
    if source is None:
        found = _from_store(Path(search))
    elif "://" in source:
        found = _from_mlflow(search_id_of(search), source, out)
    else:
        found = _from_store(Path(source) / search_id_of(search))
    emit(found, describe_result(found), as_json)


def search_id_of(search: str) -> str:
    """The id that is given, or that of the search file that is given."""
    if search.endswith((".yaml", ".yml")):
        return load_search(Path(search)).search_id
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", search) is None:
        raise SpecError(
            f"{search!r} is no search's id; with --from give the id that pmlray validate or pmlray"
            " list shows, or the search file"
        )
    return search


def tracking_scheme(uri: str) -> str:
    """The scheme of an MLflow URI; SpecError where MLflow reads none such."""
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme not in TRACKING_SCHEMES:
        raise SpecError(
            f"--from reads folders and MLflow ({', '.join(TRACKING_SCHEMES)}), not {scheme}://;"
            " mount that storage and give the folder"
        )
    return scheme


def _from_store(folder: Path) -> dict[str, Any]:
    from pmlray.cli.driver import report_store
    from pmlray.study.report_page import write_pngs

    found = report_store(folder.absolute())
    # A search's own report has SVG alone: pixels take longer to draw than all the rest of it.
    write_pngs(sorted((Path(found["report"]).parent / "figures").glob("*.svg")))
    return found


def _from_mlflow(search_id: str, uri: str, out: Path | None) -> dict[str, Any]:
    tracking_scheme(uri)
    # A server that is away is said to be so within seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from pmlray.backends.mlflow_reports import fetch_report
    from pmlray.study.report_tables import without_credentials

    folder = Path("runs") / search_id / "report" if out is None else out
    page, numbers = fetch_report(uri, search_id, folder.absolute())
    found = json.loads(numbers.read_text(encoding="utf-8"))
    return {**found, "report": str(page), "tracking_uri": without_credentials(uri)}
