"""`pmlray doctor`: checks of this machine, each with its remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import typer

from pmlray.api.environment import checks
from pmlray.cli.output import JSON_OPTION, emit
from pmlray.config.cluster_address import LOCAL, jobs_address, ray_address


def doctor(
    store: Path = typer.Option(None, help="Where stores are to be; default: PMLRAY_STORE, ./runs."),
    model: str = typer.Option(None, help="A base model to be here; default: the small ones."),
    revision: str = typer.Option(
        None, help="Commit of a hub model; default: its default branch's."
    ),
    address: str = typer.Option(None, help="A Ray cluster; default: RAY_API_SERVER_ADDRESS."),
    tracking_uri: str = typer.Option(None, help="MLflow; default: MLFLOW_TRACKING_URI."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Check versions, device, memory, disk, base models, Ray and MLflow.

    Exit code 2 when something must be mended; each line says how.
    """
    found = list(_checks(store, model, revision, address, tracking_uri))
    healthy = all(check.state != "fail" for check in found)
    text = "\n".join(check.line() for check in found)
    emit({"healthy": healthy, "checks": [asdict(c) for c in found]}, text, as_json)
    raise typer.Exit(0 if healthy else 2)


def _checks(
    store: Path | None,
    model: str | None,
    revision: str | None,
    address: str | None,
    tracking_uri: str | None,
) -> Iterator[checks.Check]:
    yield checks.python_version()
    yield from checks.packages()
    yield checks.locked_versions()
    yield checks.device()
    yield checks.memory()
    stores = store or Path(os.environ.get("PMLRAY_STORE") or "runs")
    yield checks.storage("store", stores, links=True)
    yield checks.models_cache()
    yield from checks.base_model(model, revision)
    yield checks.ray_token()
    yield checks.reached(
        "ray address",
        os.environ.get("RAY_ADDRESS"),
        "RAY_ADDRESS is not set: searches start Ray on this machine",
        _ask_head,
    )
    where = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    cluster = checks.reached(
        "ray cluster", where, "no Jobs API set, which `pmlray submit` needs", _ask_ray
    )
    yield cluster
    if where and cluster.state == "ok":
        yield _workers(where)
    yield checks.reached(
        "mlflow",
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
        "no server set: each search has a database in its store",
        _ask_mlflow,
    )


def _ask_head(_address: str) -> str:
    cluster = ray_address(None)
    if cluster == LOCAL:
        return "local: searches start Ray on this machine"
    from pmlray.backends.ray.reach import require_cluster

    require_cluster(cluster)
    return f"{cluster} answers"


def _ask_ray(address: str) -> str:
    cluster = jobs_address(address, allow_clear_text=False)
    from pmlray.backends.ray.jobs import RayJobs

    n_jobs = len(RayJobs(cluster).all_jobs())
    return f"{cluster} answers, {n_jobs} jobs"


def _workers(address: str) -> checks.Check:
    from pmlray.backends.ray.jobs import RayJobs
    from pmlray.backends.ray.niceness import REMEDY, describe_niceness

    niceness = RayJobs(jobs_address(address, allow_clear_text=False)).worker_niceness()
    if niceness is None:
        told = "a job that asks for their niceness gave no answer"
        return checks.Check("ray workers", "warn", told, "look at it: pmlray list, pmlray logs")
    if niceness > 0:
        return checks.Check("ray workers", "warn", describe_niceness(niceness), REMEDY)
    return checks.Check("ray workers", "ok", f"niceness {niceness}")


def _ask_mlflow(uri: str) -> str:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from pmlray.config.secrets import without_credentials
    from pmlray.config.tracking_address import tracking_address

    tracking_address(uri, "--tracking-uri or MLFLOW_TRACKING_URI")
    from pmlray.backends.mlflow.watch import experiments

    return f"{without_credentials(uri)} answers, {experiments(uri)} experiments"
