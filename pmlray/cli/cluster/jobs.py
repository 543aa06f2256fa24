"""`pmlray list`, `status`, `logs`, `stop` and `sync`: searches on a cluster, and their mirrors."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pmlray.cli.cluster.submit import ADDRESS_OPTION, CLEAR_TEXT_OPTION
from pmlray.cli.output import JSON_OPTION, emit, tell
from pmlray.config.cluster_address import jobs_address
from pmlray.config.secrets import no_password

if TYPE_CHECKING:
    from pmlray.backends.ray.jobs import RayJobs, SearchJob

JOB_ARGUMENT = typer.Argument(
    None, help="A submission id, or a search's id for its newest job; default: the newest search."
)


def list_jobs(
    address: str = ADDRESS_OPTION,
    clear_text: bool = CLEAR_TEXT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """List the jobs of a cluster, newest first."""
    jobs = _jobs(address, clear_text).all_jobs()
    text = "\n".join(_line(job) for job in jobs) or "no job was submitted to this cluster"
    emit({"jobs": [asdict(job) for job in jobs]}, text, as_json)


def status(
    job: str = JOB_ARGUMENT,
    address: str = ADDRESS_OPTION,
    clear_text: bool = CLEAR_TEXT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Say how a submitted search stands."""
    found = _jobs(address, clear_text).find(job)
    message = f"\n{found.message}" if found.message else ""
    emit(asdict(found), f"{_line(found)}{message}", as_json)


def logs(
    job: str = JOB_ARGUMENT,
    address: str = ADDRESS_OPTION,
    follow: bool = typer.Option(
        False, "--follow", "-f", help="Go on until the job is over, and return its exit code."
    ),
    clear_text: bool = CLEAR_TEXT_OPTION,
) -> None:
    """Show what a submitted search has printed."""
    jobs = _jobs(address, clear_text)
    found = jobs.find(job)
    if not follow:
        typer.echo(jobs.logs(found.submission_id), nl=False)
        return
    try:
        code = jobs.follow(found.submission_id, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        tell("no longer following; the job goes on")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def stop(
    job: str = JOB_ARGUMENT,
    address: str = ADDRESS_OPTION,
    no_wait: bool = typer.Option(False, "--no-wait", help="Return once the job was told to stop."),
    clear_text: bool = CLEAR_TEXT_OPTION,
    as_json: bool = JSON_OPTION,
) -> None:
    """Stop a submitted search; what it has measured stays, and submitting it again continues it."""
    jobs = _jobs(address, clear_text)
    found = jobs.stop(jobs.find(job).submission_id, wait=not no_wait)
    emit(asdict(found), _line(found), as_json)


def _jobs(address: str | None, clear_text: bool) -> RayJobs:
    cluster = jobs_address(address, clear_text)
    from pmlray.backends.ray.jobs import RayJobs

    return RayJobs(cluster)


def _line(job: SearchJob) -> str:
    began = "-"
    if job.started is not None:
        began = datetime.fromtimestamp(job.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lasted = "" if job.seconds is None else f" for {job.seconds:.0f} s"
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    return f"{job.submission_id}  {job.status}{lasted}, started {began}{code}"


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
        f" {study}\n{found['tracking_page']}",
        as_json,
    )
