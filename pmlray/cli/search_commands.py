"""`pmlray validate`, `plan` and `search`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import typer

from pmlray.api.search import Search
from pmlray.cli.describe.placements import choice_lines
from pmlray.cli.output import JSON_OPTION, SET_OPTION, emit, tell
from pmlray.config.prepared_search import prepare_search
from pmlray.config.secrets import no_password
from pmlray.version import shipped

SPEC_ARGUMENT = typer.Argument(
    ..., help=f"A search's YAML file, such as {shipped('searches/smoke.yaml')}."
)
PROFILE_OPTION = typer.Option(
    None,
    help=f"A cluster's YAML file, such as {shipped('cluster/profiles/cpu.yaml')}; default: this"
    " machine, on its CPU.",
)


def validate(
    spec: Path = SPEC_ARGUMENT,
    overrides: list[str] = SET_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check a search file without starting anything."""
    search = prepare_search(spec, overrides or ())
    runs = len(search.spec.space.points()) * len(search.spec.replicates())
    found: dict[str, Any] = {
        "valid": True,
        "search_id": search.spec.search_id,
        "model": search.source.identity,
        "n_candidates": runs,
        **search.counts(),
    }
    begins = ""
    if search.start is not None:
        found["from_adapter"] = search.start.facts()
        begins = f"all begin at {search.describe_place()}"
    text = f"{spec} is valid: {search.spec.search_id}, {runs} possible runs"
    emit(found, "\n".join(filter(None, (text, begins, search.duplicates))), as_json)


def plan(
    spec: Path = SPEC_ARGUMENT,
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Show the candidates, their predicted cost and the first pack; starts nothing."""
    found = Search.load(spec, overrides=overrides or (), profile=profile).plan()
    choices = [line for choice in found.choices for line in choice_lines(choice.to_json())]
    emit(found.to_json(), "\n".join([found.describe(), *choices]), as_json)


def search(
    spec: Path = SPEC_ARGUMENT,
    store: Path = typer.Option(
        None,
        help="Folder of the search's results; kept and continued. Default: its id as a folder of"
        " the profile's storage, of PMLRAY_STORE or of ./runs.",
    ),
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(
        None,
        callback=no_password,
        help="MLflow; default: MLFLOW_TRACKING_URI, the profile's, or a database in the store.",
    ),
    address: str = typer.Option(
        None, help="HOST:PORT of a Ray head; default: RAY_ADDRESS or a local Ray."
    ),
    replay: Path = typer.Option(None, help="Look measurements up in this table; trains nothing."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan; start nothing."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Run a search, or continue the one that is in the store."""
    from pmlray.cli.describe.law import describe_result

    wanted = Search.load(
        spec,
        overrides=overrides or (),
        store=store,
        profile=profile,
        tracking_uri=tracking_uri,
        address=address,
    )
    if dry_run:
        plan = wanted.plan()
        text = f"{plan.describe()}\nresults in {wanted.store}"
        emit(plan.to_json() | {"store": str(wanted.store)}, text, as_json)
        return
    if duplicates := wanted.prepared.duplicates:
        tell(duplicates)
    try:
        # Ray and Tune print to stdout, which is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            found = wanted.run(replay=replay).to_json()
    except KeyboardInterrupt:
        tell(f"interrupted; the same command continues from {wanted.store}")
        raise typer.Exit(130) from None
    emit(found, describe_result(found), as_json)
