"""Submit a search to a Ray cluster over HTTP, follow its log, return its exit code."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import pmlray
from pmlray.errors import RunError, SpecError

MAX_UPLOAD_BYTES = 50 * 2**20
# Ray kills a job's process 3 s after it asks it to stop; a search needs time to close its tracker.
STOP_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def stage_working_dir(folder: Path, files: Mapping[str, Path]) -> None:
    """Fill a folder for upload: pmlray's own source and the search's files, by their target names.

    The cluster then runs the very code that validated the search. SpecError when it is too large.
    """
    source = Path(pmlray.__file__).parent
    shutil.copytree(source, folder / "pmlray", ignore=shutil.ignore_patterns("__pycache__"))
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_UPLOAD_BYTES:
        raise SpecError(
            f"the search's files are {size / 2**20:.0f} MiB; put them on the cluster's storage and"
            " give their absolute paths"
        )


def submit_job(
    address: str,
    working_dir: Path,
    arguments: Sequence[str],
    *,
    submission_id: str | None,
    environment: Mapping[str, str],
    show: Callable[[str], None],
    wait: bool,
) -> tuple[str, int]:
    """Run `python -m pmlray ARGUMENTS` as a Ray job; returns (submission id, exit code).

    With token authentication on the cluster, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or a token
    file) must be set here. RunError when the cluster cannot be reached or refuses the job. Without
    `wait` the code is 0 as soon as the job is accepted.
    """
    entrypoint = " ".join(["python", "-m", "pmlray", *map(shlex.quote, arguments)])
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=entrypoint,
            submission_id=submission_id,
            runtime_env={
                "working_dir": str(working_dir),
                "env_vars": {**STOP_ENVIRONMENT, **environment},
            },
        )
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        raise RunError(f"the cluster at {address} did not take the job: {error}") from error
    if not wait:
        return job, 0
    try:
        asyncio.run(_follow(client, job, show))
        return job, _exit_code(client, job)
    except (ConnectionError, RuntimeError) as error:
        raise RunError(
            f"lost the cluster at {address} ({error}); the job {job} may go on:"
            f" ray job logs --address {address} --follow {job}"
        ) from error


async def _follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job):
        show(text)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    """The driver's exit code once the job is over; its log can end a moment earlier."""
    deadline = time.monotonic() + 60
    details: JobDetails = client.get_job_info(job)
    while not details.status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
        details = client.get_job_info(job)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        return 130
    return details.driver_exit_code or 3
