"""Searches as jobs of a Ray cluster over HTTP: submission, logs, status and stop."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import ray
from packaging.version import Version
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pmlray.backends.ray.niceness import PROBE, told_niceness
from pmlray.errors import RunError, SpecError
from pmlray.version import shipped

STOP_SECONDS = 60
# The environment of every job, as cluster/runtime_env.yaml has it for `ray job submit`.
JOB_ENVIRONMENT = {
    # Ray kills a job 3 s after it asks it to stop; a search closes its store and tracker first.
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    # A GPU node that an autoscaler starts is ready after minutes, not within Ray Train's 60 s.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
}
# A cluster that has just started answers before the agent that starts jobs is ready.
NO_AGENT = "No available agent"
AGENT_SECONDS, RETRY_SECONDS = 60, 0.5
# Time for the job that measures niceness, enough on a busy cluster too.
PROBE_SECONDS = 60
# Ray's REST interface does not announce a job's end.
POLL_SECONDS = 0.5
SEARCH_KEY = "pmlray.search_id"
# Errors of Ray's client, requests and aiohttp when a cluster cannot be reached or refuses.
CLUSTER_ERRORS = (OSError, RuntimeError, ValueError, aiohttp.ClientError, AuthenticationError)


@dataclass(frozen=True, slots=True)
class SearchJob:
    """Job of a cluster. `seconds`: run time so far; `started`: Unix time, seconds."""

    submission_id: str
    search_id: str
    status: str
    message: str
    started: float | None
    seconds: float | None
    exit_code: int | None


class RayJobs:
    """Client for the jobs of one cluster.

    With token authentication on the cluster, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or
    RAY_AUTH_TOKEN) must be set here. RunError, with a remedy, when the cluster cannot be reached,
    refuses the token, or runs another version of Ray than this machine.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        with self._explained("cannot be asked"):
            self._client = JobSubmissionClient(address)
            # The client learns the version when it connects, and has no public attribute for it.
            found = self._client._server_ray_version
        if found is not None and Version(found) != Version(ray.__version__):
            raise RunError(
                f"the cluster at {address} runs Ray {found}, and this pmlray needs"
                f" {ray.__version__}: build the cluster's image from this version's"
                f" {shipped('cluster/Dockerfile')}, or install here the pmlray that the cluster was"
                " built from"
            )

    def submit(
        self,
        archive: Path,
        arguments: Sequence[str],
        *,
        search_id: str,
        submission_id: str | None,
    ) -> str:
        """Run `python -m pmlray ARGUMENTS` on the head node; return the submission id.

        archive: a .zip, whose content is the job's working directory.
        submission_id: must be new on the cluster; by default the search's id and a number.
        """
        job = submission_id or self._next_id(search_id)
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=" ".join(["python", "-m", "pmlray", *map(shlex.quote, arguments)]),
                    submission_id=job,
                    runtime_env={"working_dir": str(archive), "env_vars": JOB_ENVIRONMENT},
                    metadata={SEARCH_KEY: search_id},
                )
            except CLUSTER_ERRORS as error:
                if NO_AGENT in str(error) and time.monotonic() < deadline:
                    time.sleep(RETRY_SECONDS)
                    continue
                if "already exists" in str(error):
                    raise SpecError(
                        f"the submission id {job} was used on this cluster before, and Ray takes"
                        " each only once; leave --submission-id out or choose another. The search"
                        " itself goes on from its store under any id"
                    ) from error
                hint = (
                    "; another Ray on its head may hold port 52365"
                    if NO_AGENT in str(error)
                    else ""
                )
                raise RunError(
                    f"the cluster at {self._address} did not take the job: {error}{hint}"
                ) from error

    def worker_niceness(self) -> int | None:
        """Return the niceness of the cluster's workers (0: normal priority), measured by a job of
        some seconds; None where that fails or takes more than PROBE_SECONDS."""
        try:
            job = self._client.submit_job(entrypoint=f"python -c {shlex.quote(PROBE)}")
            if not JobStatus(self._wait(job, PROBE_SECONDS).status).is_terminal():
                self._client.stop_job(job)
                return None
            told = told_niceness(self._client.get_job_logs(job))
            # A failed job is kept, since its log may say why.
            if told is not None:
                self._client.delete_job(job)
        except CLUSTER_ERRORS:
            return None
        return told

    def all_jobs(self) -> list[SearchJob]:
        """Return all jobs that were submitted to the cluster, newest first."""
        with self._explained("did not list its jobs"):
            found = self._client.list_jobs()
        jobs = [job for job in map(_search_job, found) if job.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0.0, reverse=True)

    def find(self, wanted: str | None) -> SearchJob:
        """Return the job of a submission id, else the newest of a search id, by default of any
        search; SpecError where there is none."""
        jobs = self.all_jobs()
        for job in jobs:
            if job.submission_id == wanted:
                return job
        for job in jobs:
            if job.search_id and wanted in (None, job.search_id):
                return job
        named = "no search" if wanted is None else f"no job or search {wanted}"
        raise SpecError(
            f"the cluster at {self._address} has {named}; pmlray list shows what it has (a cluster"
            " that was restarted forgets its jobs; submitting again continues from the store)"
        )

    def logs(self, job: str) -> str:
        """Return the job's output so far."""
        with self._explained(f"gave no log of {job}"):
            return self._client.get_job_logs(job)

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Pass a job's log to `show` until the job ends; return its exit code."""
        try:
            asyncio.run(self._tail(job, show))
            return self._exit_code(job)
        except CLUSTER_ERRORS as error:
            raise RunError(
                f"lost the cluster at {self._address} ({error}); the job may go on:"
                f" pmlray logs {job} --follow --address {self._address}"
            ) from error

    def stop(self, job: str, wait: bool) -> SearchJob:
        """Ask a job to stop; with `wait`, wait until it has closed its store and tracker."""
        with self._explained(f"did not stop {job}"):
            self._client.stop_job(job)
            if wait:
                self._wait(job, STOP_SECONDS + 15)
            return self._job(job)

    def _job(self, job: str) -> SearchJob:
        return _search_job(self._client.get_job_info(job))

    def _next_id(self, search_id: str) -> str:
        taken = {job.submission_id for job in self.all_jobs()}
        attempt = 1
        while f"{search_id}-{attempt}" in taken:
            attempt += 1
        return f"{search_id}-{attempt}"

    async def _tail(self, job: str, show: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job):
            show(text)

    def _exit_code(self, job: str) -> int:
        """Return the driver's exit code once the job has ended; its log can end earlier."""
        over = self._wait(job, 60)
        if over.status == JobStatus.SUCCEEDED:
            return 0
        if over.status == JobStatus.STOPPED:
            return 130
        return over.exit_code or 3

    def _wait(self, job: str, seconds: float) -> SearchJob:
        deadline = time.monotonic() + seconds
        found = self._job(job)
        while not JobStatus(found.status).is_terminal() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = self._job(job)
        return found

    @contextmanager
    def _explained(self, what: str) -> Generator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise RunError(
                f"the cluster at {self._address} refused the token: set RAY_AUTH_MODE=token and"
                f" RAY_AUTH_TOKEN_PATH to the file of its token ({shipped('cluster/README.md')}):"
                f" {error}"
            ) from error
        except CLUSTER_ERRORS as error:
            raise RunError(
                f"the cluster at {self._address} {what}: {error}; is it up, and its port 8265"
                f" forwarded to this machine ({shipped('cluster/README.md')})?"
            ) from error


def _search_job(details: JobDetails) -> SearchJob:
    # Ray declares the class as None where pydantic is missing; pmlray itself requires pydantic.
    assert details is not None
    started = None if not details.start_time else details.start_time / 1000
    ended = time.time() if not details.end_time else details.end_time / 1000
    return SearchJob(
        submission_id=details.submission_id or "",
        search_id=(details.metadata or {}).get(SEARCH_KEY, ""),
        status=details.status.value,
        message=(details.message or "").strip(),
        started=started,
        seconds=None if started is None else max(0.0, ended - started),
        exit_code=details.driver_exit_code,
    )
