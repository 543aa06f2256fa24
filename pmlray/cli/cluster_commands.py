"""`pmlray submit`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer
import yaml

from pmlray.cli.output import JSON_OPTION, SET_OPTION, emit
from pmlray.cli.search_commands import PROFILE_OPTION, SPEC_ARGUMENT, read_profile
from pmlray.config.prepared import prepare_search
from pmlray.errors import SpecError


def submit(
    spec: Path = SPEC_ARGUMENT,
    address: str = typer.Option(None, help="http://HEAD:8265; default: RAY_API_SERVER_ADDRESS."),
    store: str = typer.Option(None, help="Folder of the results, as the cluster sees it."),
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(None, help="MLflow, as the cluster reaches it."),
    submission_id: str = typer.Option(None, help="Ray's id of the job; must be new."),
    no_wait: bool = typer.Option(False, "--no-wait", help="Return once the job is accepted."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Submit a search to a Ray cluster, follow its log and return its exit code."""
    from pmlray.backends.ray_jobs import stage_working_dir, submit_job

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        raise SpecError("give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    search = prepare_search(spec, overrides or ())
    read_profile(profile)
    arguments = ["search", "search.yaml"]
    for option, value in (("--store", store), ("--tracking-uri", tracking_uri)):
        if value is not None:
            arguments += [option, value]
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        effective = search.spec.model_dump(mode="json", exclude_none=True)
        for key in ("text", "records"):
            if (name := effective["task"].get(key)) is not None:
                effective["task"][key] = f"files/{key}"
                files[f"files/{key}"] = spec.parent / name
        effective_file = Path(folder) / "effective.yaml"
        effective_file.write_text(yaml.safe_dump(effective, sort_keys=False))
        files["search.yaml"] = effective_file
        if profile is not None:
            files["profile.yaml"] = profile
            arguments += ["--profile", "profile.yaml"]
        working_dir = Path(folder) / "upload"
        stage_working_dir(working_dir, files)
        try:
            job, code = submit_job(
                address,
                working_dir,
                arguments,
                submission_id=submission_id,
                environment={},
                show=lambda text: typer.echo(text, nl=False, err=as_json),
                wait=not no_wait,
            )
        except KeyboardInterrupt:
            typer.echo(
                "no longer following; the job goes on (ray job list, ray job stop)", err=True
            )
            raise typer.Exit(130) from None
    found = {"submission_id": job, "exit_code": code, "search_id": search.spec.search_id}
    emit(found, f"{job}: exit code {code}", as_json)
    raise typer.Exit(code)
