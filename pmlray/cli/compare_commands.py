"""`pmlray compare`: MemFT's methods beside plain fine-tuning."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import typer

from pmlray.api.search import read_profile
from pmlray.cli.output import JSON_OPTION, SET_OPTION, emit
from pmlray.cli.search_commands import PROFILE_OPTION
from pmlray.config.prepared_search import prepare_comparison
from pmlray.config.secrets import no_password


def compare(
    spec: Path = typer.Argument(..., help="A comparison's YAML file."),
    store: Path = typer.Option(None, help="Folder of the results; kept and continued."),
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(
        None, callback=no_password, help="MLflow; default: a database in the store."
    ),
    address: str = typer.Option(None, help="Ray cluster; default: RAY_ADDRESS or a local Ray."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Count the runs; start nothing."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Compare training methods at equal cost, or continue the comparison that is in the store."""
    from pmlray.api.comparison_run import ComparisonRun, planned_runs, run_comparison
    from pmlray.api.live_progress import live_progress
    from pmlray.api.search_run import default_store, tracking_uri_for

    comparison, search = prepare_comparison(spec, overrides or ())
    settings = read_profile(profile)
    if dry_run:
        plan = planned_runs(comparison, search, settings)
        emit(plan, "\n".join(f"{name}: {value}" for name, value in plan.items()), as_json)
        return
    folder = store.absolute() if store is not None else default_store(search, settings)
    uri = tracking_uri_for(folder, settings, tracking_uri)
    run = ComparisonRun(comparison, search, settings, folder, uri, address)
    try:
        # Ray and Tune print as they please; stdout is for the result alone.
        with contextlib.redirect_stdout(sys.stderr), live_progress() as announce:
            found, text = run_comparison(run, announce)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues from {folder}", err=True)
        raise typer.Exit(130) from None
    emit(found, text, as_json)
