"""The search of a chaos run as a job of the cluster, by `pmlray submit`.

What follows goes through the REST interface of Ray's Jobs API, since a process of its own for each
look would cost what the search needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

from pmlray.backends.ray.jobs import STOP_SECONDS
from scripts.bench.chaos.servers import RayNodes

# Every look is a request to the cluster.
LOOK_SECONDS = 1.0
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
SUBMIT_SECONDS = 200


class SearchJob:
    """A search that whoever submitted it submits again when it ended unfinished.

    arguments: of `pmlray submit`.
    """

    def __init__(self, nodes: RayNodes, arguments: list[str]) -> None:
        self._nodes = nodes
        self._command = [sys.executable, "-m", "pmlray", "submit", *arguments, "--no-wait"]
        self._looked_at, self._finished = 0.0, False
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Submit the search, or its continuation, to the cluster that there is."""
        self.starts += 1
        self._job = f"chaos-{self.starts}"
        where = ["--address", self._nodes.dashboard, "--submission-id", self._job]
        done = subprocess.run(
            [*self._command, *where], env={**os.environ, **self._nodes.environment},
            capture_output=True, text=True, timeout=SUBMIT_SECONDS,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the search was not submitted: {done.stderr[-2000:]}")

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
