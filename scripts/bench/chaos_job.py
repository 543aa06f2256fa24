"""The search of a chaos run as a job of the cluster, through Ray's Jobs API as `pmlray submit` uses
it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from pmlray.backends.job_upload import stage_working_dir
from pmlray.backends.ray_jobs import RayJobs
from scripts.bench.chaos_servers import RayNodes

# Every look is a request to the cluster.
LOOK_SECONDS = 1.0


class SearchJob:
    """A search that whoever submitted it submits again when it ended unfinished."""

    def __init__(
        self,
        nodes: RayNodes,
        search_id: str,
        spec: Path,
        profile: Path,
        arguments: list[str],
        folder: Path,
    ) -> None:
        self._nodes, self._search_id = nodes, search_id
        self._upload = folder / "upload"
        self._upload.mkdir()
        stage_working_dir(self._upload, {"search.yaml": spec, "profile.yaml": profile})
        self._arguments = ["search", "search.yaml", "--profile", "profile.yaml", *arguments]
        self._looked_at, self._finished = 0.0, False
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Submit the search, or its continuation, to the cluster that there is."""
        self.starts += 1
        self._jobs = RayJobs(self._nodes.dashboard)
        self._job = self._jobs.submit(
            self._upload, self._arguments, search_id=self._search_id, submission_id=None
        )

    def kill(self) -> None:
        """Its driver alone, not what it has on Ray."""
        for pid in self._nodes.processes("pmlray search search.yaml"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> float:
        """As `ray job stop`: ask it to leave, and wait until it has; the seconds that took."""
        began = time.monotonic()
        self._jobs.stop(self._job, wait=True)
        return time.monotonic() - began

    def has_finished(self) -> bool:
        """Whether the search came to its end; one that ended otherwise is submitted again."""
        if not self._finished and time.monotonic() - self._looked_at > LOOK_SECONDS:
            status = self._jobs.find(self._job).status
            self._finished = status == "SUCCEEDED"
            if status in ("FAILED", "STOPPED"):
                self.start()
            self._looked_at = time.monotonic()
        return self._finished
