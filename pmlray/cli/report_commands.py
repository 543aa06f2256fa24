"""`pmlray report`: of a store here, or of a search that ran on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from pmlray.cli.describe.law import describe_result
from pmlray.cli.output import JSON_OPTION, emit
from pmlray.cli.search_source import SOURCE_OPTION, in_mlflow, search_id_of
from pmlray.config.store_folder import local_folder
from pmlray.errors import StoreError
from pmlray.rebuild import MALFORMED


def report(
    search: str = typer.Argument(
        ..., help="A search's store; with --from, the search's id or its search file."
    ),
    source: str = SOURCE_OPTION,
    out: Path = typer.Option(
        None, help="Folder for a report fetched from MLflow; default: runs/SEARCH_ID/report."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write the report of a search again from its store, with its figures as SVG and PNG files too,
    or fetch it from MLflow."""
    if source is None:
        found = _from_store(Path(search))
    elif in_mlflow(source):
        found = _from_mlflow(search_id_of(search), source, out)
    else:
        found = _from_store(Path(source) / search_id_of(search))
    emit(found, describe_result(found), as_json)


def _from_store(folder: Path) -> dict[str, Any]:
    from pmlray.api.search_run import report_store
    from pmlray.study.report.page import write_pngs

    report = report_store(folder.absolute())
    # A search writes SVG alone: PNG takes longer to draw than the rest of the report.
    write_pngs(sorted((report.page.parent / "figures").glob("*.svg")))
    return report.to_json()


def _from_mlflow(search_id: str, uri: str, out: Path | None) -> dict[str, Any]:
    from pmlray.backends.mlflow.reports import fetch_report
    from pmlray.config.secrets import without_credentials

    folder = Path("runs") / search_id / "report" if out is None else local_folder(out, "--out")
    page, numbers = fetch_report(uri, search_id, folder.absolute())
    try:
        found = json.loads(numbers.read_bytes())
        return {**found, "report": str(page), "tracking_uri": without_credentials(uri)}
    except (*MALFORMED, RecursionError) as error:
        raise StoreError(
            f"the report of {search_id} at {without_credentials(uri)} is damaged ({error});"
            " pmlray report STORE writes it anew"
        ) from error
