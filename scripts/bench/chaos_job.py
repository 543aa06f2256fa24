"""The search of a chaos run as a job of the cluster, through the REST interface of Ray's Jobs API.

Not through `pmlray submit`: Ray unpacks an upload into the session folder, which the nodes of a
machine share, and each node whose first worker needs it removes what another has unpacked there
(`WorkingDirPlugin.create` overwrites), so that the job that runs from it misses modules.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from pmlray.backends.ray_jobs import AGENT_SECONDS, JOB_ENVIRONMENT, NO_AGENT, STOP_SECONDS
from scripts.bench.chaos_servers import RayNodes

# Every look is a request to the cluster.
LOOK_SECONDS = 1.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class SearchJob:
    """A search that whoever submitted it submits again when it ended unfinished.

    arguments: of `pmlray search`.
    """

    def __init__(self, nodes: RayNodes, arguments: list[str]) -> None:
        self._nodes = nodes
        self._command = [sys.executable, "-m", "pmlray", "search", *arguments]
        self._looked_at, self._finished = 0.0, False
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Submit the search, or its continuation, to the cluster that there is."""
        self.starts += 1
        self._job = f"chaos-{self.starts}"
        job = {"entrypoint": shlex.join(self._command), "submission_id": self._job,
               "runtime_env": {"env_vars": JOB_ENVIRONMENT}}  # fmt: skip
        until = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._ask("/api/jobs/", job)
                return
            except urllib.error.HTTPError as error:
                # A cluster that has just started answers before it can start jobs.
                if NO_AGENT not in error.read().decode() or time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)

    def kill(self) -> None:
        """Its driver alone, not what it has on Ray."""
        for pid in self._nodes.processes("-m pmlray search"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> float:
        """As `ray job stop`: ask it to leave, and wait until it has; the seconds that took."""
        began = time.monotonic()
        self._ask(f"/api/jobs/{self._job}/stop", {})
        while self._status() not in OVER and time.monotonic() < began + 2 * STOP_SECONDS:
            time.sleep(0.2)
        return time.monotonic() - began

    def has_finished(self) -> bool:
        """Whether the search came to its end; one that ended otherwise is submitted again."""
        if not self._finished and time.monotonic() - self._looked_at > LOOK_SECONDS:
            status = self._status()
            self._finished = status == "SUCCEEDED"
            if status in OVER and not self._finished:
                self.start()
            self._looked_at = time.monotonic()
        return self._finished

    def log(self) -> str:
        """What the job that runs now, or ran last, has printed."""
        return self._ask(f"/api/jobs/{self._job}/logs")["logs"]

    def _status(self) -> str:
        return self._ask(f"/api/jobs/{self._job}")["status"]

    def _ask(self, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request, a POST where there is content."""
        request = urllib.request.Request(
            f"{self._nodes.dashboard}{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={
                "Authorization": f"Bearer {self._nodes.token}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
