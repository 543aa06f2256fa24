"""`pmlray submit`."""

from __future__ import annotations

import json
import shlex
import tempfile
from contextlib import suppress
from pathlib import Path, PurePath
from threading import Thread
from typing import TYPE_CHECKING

import typer
import yaml

from pmlray.cli.output import JSON_OPTION, SET_OPTION, emit
from pmlray.cli.search_commands import PROFILE_OPTION, SPEC_ARGUMENT
from pmlray.config import SearchSpec
from pmlray.config.cluster_address import jobs_address
from pmlray.config.load import read_profile
from pmlray.config.prepared_search import prepare_search
from pmlray.config.secrets import no_password
from pmlray.config.store_folder import local_folder
from pmlray.config.tracking_address import tracking_address
from pmlray.memory.reading.rows import format_suffix
from pmlray.study.search.plan import plan_search
from pmlray.version import here_or_shipped

if TYPE_CHECKING:
    from pmlray.backends.ray.jobs import RayJobs

ADDRESS_OPTION = typer.Option(
    None, help="The cluster, http://127.0.0.1:8265; default: RAY_API_SERVER_ADDRESS."
)
RESERVED_NAMES = ("pmlray", "search.yaml", "profile.yaml")
CLEAR_TEXT_OPTION = typer.Option(
    False, "--clear-text", help="Allow plain http to another machine: anyone between can read it."
)


def submit(
    spec: Path = SPEC_ARGUMENT,
    address: str = ADDRESS_OPTION,
    store: str = typer.Option(
        None,
        help="Folder of the results, as the cluster sees it; default: as of pmlray search there.",
    ),
    overrides: list[str] = SET_OPTION,
    profile: Path = PROFILE_OPTION,
    tracking_uri: str = typer.Option(
        None,
        callback=no_password,
        help="MLflow, as the cluster reaches it; default: as of pmlray search there.",
    ),
    submission_id: str = typer.Option(
        None, help="Ray's id of the job; must be new. Default: the search's id and a number."
    ),
    no_wait: bool = typer.Option(
        False, "--no-wait", help="Do not follow the job once it is accepted."
    ),
    clear_text: bool = CLEAR_TEXT_OPTION,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show what would be sent, and its plan; ask no cluster."
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Submit a search to a Ray cluster, follow its log and return its exit code."""
    cluster = jobs_address(address, clear_text)
    spec, profile = here_or_shipped(spec), profile and here_or_shipped(profile)
    search = prepare_search(spec, overrides or ())
    settings = read_profile(profile)
    if store is not None:
        local_folder(store, "--store")
    if tracking_uri is not None:
        tracking_address(tracking_uri, "--tracking-uri")
    arguments = ["search", "search.yaml"]
    for option, value in (("--store", store), ("--tracking-uri", tracking_uri)):
        if value is not None:
            arguments += [option, value]
    # Imported late: Ray's client takes a second, and a mistake in the search is reported first.
    from pmlray.backends.ray.job_upload import pack_working_dir, start_files

    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        effective = search.spec.model_dump(mode="json", exclude_none=True)
        for key, used in (("text", search.task.text), ("records", search.task.pairs)):
            if used is not None:
                name = effective["task"][key]
                place = _place_in_upload(name, key)
                effective["task"][key] = place
                files[place] = spec.parent / name
        if search.spec.adapter is not None and (name := search.spec.adapter.from_adapter):
            place = _place_in_upload(name, "from_adapter")
            effective["adapter"]["from_adapter"] = place
            files |= start_files(spec.parent / name, place, search.spec.model, Path(folder))
        # Id of the uploaded search: where a file had to move, it differs from that of the search
        # here.
        search_id = SearchSpec.model_validate_json(json.dumps(effective)).search_id
        effective_file = Path(folder) / "effective.yaml"
        effective_file.write_text(yaml.safe_dump(effective, sort_keys=False))
        files["search.yaml"] = effective_file
        if profile is not None:
            files["profile.yaml"] = profile
            arguments += ["--profile", "profile.yaml"]
        archive = Path(folder) / "upload.zip"
        size = pack_working_dir(archive, files)
        if dry_run:
            on_gpu = settings.gpus_per_pack > 0
            plan = plan_search(search.settled(on_gpu), on_gpu)
            sent = {"address": cluster, "arguments": arguments, "upload_bytes": size}
            text = f"{size / 2**20:.1f} MiB would go to {cluster}: pmlray {shlex.join(arguments)}"
            found = plan.to_json() | sent | {"search_id": search_id}
            emit(found, f"{plan.describe()}\n{text}", as_json)
            return
        from pmlray.backends.ray.jobs import RayJobs

        jobs = RayJobs(cluster)
        job = jobs.submit(
            archive,
            arguments,
            search_id=search_id,
            submission_id=submission_id,
        )
    looking = Thread(target=_say_who_gives_way, args=(jobs,), daemon=True)
    looking.start()
    code = 0
    if not no_wait:
        try:
            code = jobs.follow(job, lambda text: typer.echo(text, nl=False, err=as_json))
        except KeyboardInterrupt:
            typer.echo(
                f"no longer following; the job goes on (pmlray logs {job}, pmlray stop {job})",
                err=True,
            )
            raise typer.Exit(130) from None
    found = {"submission_id": job, "exit_code": code, "search_id": search_id}
    ended = f"accepted; pmlray logs {job} --follow" if no_wait else f"exit code {code}"
    emit(found, f"{job}: {ended}", as_json)
    # Ctrl-C only ends the check of the workers; the job is submitted.
    with suppress(KeyboardInterrupt):
        looking.join()
    raise typer.Exit(code)


def _say_who_gives_way(jobs: RayJobs) -> None:
    """Warn where the cluster's workers run at a lowered CPU priority; takes a minute at most."""
    from pmlray.backends.ray.niceness import REMEDY, describe_niceness

    niceness = jobs.worker_niceness()
    if niceness is not None and niceness > 0:
        typer.echo(f"warning: {describe_niceness(niceness)}; {REMEDY}", err=True)


def _place_in_upload(name: str, key: str) -> str:
    """Return the path of a search's file or folder in the upload.

    It is the file's own relative path, so that the search keeps its id, unless that begins with a
    name that pmlray reserves in the upload.
    """
    parts = PurePath(name).parts
    if parts and parts[0] not in RESERVED_NAMES:
        return name
    return f"files/{key}{format_suffix(name)}"
