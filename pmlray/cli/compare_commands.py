"""`pmlray compare`: MemFT's methods against plain fine-tuning."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import typer

from pmlray.api.comparison import Comparison
from pmlray.cli.describe.law import tracking_lines
from pmlray.cli.output import JSON_OPTION, emit, tell
from pmlray.cli.search_commands import PROFILE_OPTION
from pmlray.config.secrets import no_password


def compare(
    spec: Path = typer.Argument(..., help="A comparison's YAML file."),
    store: Path = typer.Option(
        None,
        help="Folder of the results; kept and continued. Default: the comparison's id as a folder"
        " of the profile's storage, of PMLRAY_STORE or of ./runs.",
    ),
    overrides: list[str] = typer.Option(
        None, "--set", help="Override a key: --set model.dtype=float32."
    ),
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(
        None,
        callback=no_password,
        help="MLflow; default: MLFLOW_TRACKING_URI, the profile's, or a database in the store.",
    ),
    address: str = typer.Option(
        None, help="HOST:PORT of a Ray head; default: RAY_ADDRESS or a local Ray."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Count the runs; start nothing."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare training methods at equal cost, or continue the comparison that is in the store."""
    comparison = Comparison.load(
        spec,
        overrides=overrides or (),
        store=store,
        profile=profile,
        tracking_uri=tracking_uri,
        address=address,
    )
    if dry_run:
        plan = comparison.plan().to_json()
        emit(plan, "\n".join(f"{name}: {value}" for name, value in plan.items()), as_json)
        return
    if duplicates := comparison.prepared.duplicates:
        tell(duplicates)
    try:
        # Ray and Tune print to stdout, which is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            found = comparison.run()
    except KeyboardInterrupt:
        tell(f"interrupted; the same command continues from {comparison.store}")
        raise typer.Exit(130) from None
    lines = [found.text, str(found.page), *tracking_lines(found.facts.to_json())]
    emit(found.to_json(), "\n".join(lines), as_json)
