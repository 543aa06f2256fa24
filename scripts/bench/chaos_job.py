"""The search of a chaos run as a job of the cluster, by the commands of a laptop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from scripts.bench.chaos_servers import RayNodes

# Every look is a request to the cluster.
LOOK_SECONDS = 1.0
COMMAND_SECONDS = 180


class SearchJob:
    """A search that whoever submitted it submits again when it ended unfinished."""

    def __init__(self, nodes: RayNodes, spec: Path, profile: Path, arguments: list[str]) -> None:
        self._nodes = nodes
        self._arguments = [str(spec), "--profile", str(profile), *arguments]
        self._looked_at, self._finished = 0.0, False
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Submit the search, or its continuation, to the cluster that there is."""
        self.starts += 1
        found = self._command("submit", *self._arguments, "--no-wait")
        self._job = found["submission_id"]

    def kill(self) -> None:
        """Its driver alone, not what it has on Ray."""
        for pid in self._nodes.processes("pmlray search search.yaml"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> float:
        """As `ray job stop`: ask it to leave, and wait until it has; the seconds that took."""
        began = time.monotonic()
        self._command("stop", self._job)
        return time.monotonic() - began

    def has_finished(self) -> bool:
        """Whether the search came to its end; one that ended otherwise is submitted again."""
        if not self._finished and time.monotonic() - self._looked_at > LOOK_SECONDS:
            status = self._status()
            self._finished = status == "SUCCEEDED"
            if status in ("FAILED", "STOPPED"):
                self.start()
            self._looked_at = time.monotonic()
        return self._finished

    def _status(self) -> str:
        request = urllib.request.Request(
            f"{self._nodes.dashboard}/api/jobs/{self._job}",
            headers={"Authorization": f"Bearer {self._nodes.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["status"]

    def _command(self, *arguments: str) -> dict[str, Any]:
        """A command of a process of its own: Ray settles on a token as it is loaded."""
        done = subprocess.run(
            [sys.executable, "-m", "pmlray", *arguments, "--address", self._nodes.dashboard,
             "--json"],
            capture_output=True, text=True, timeout=COMMAND_SECONDS,
            env={**os.environ, **self._nodes.environment},
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"pmlray {arguments[0]} failed: {done.stderr[-2000:]}")
        return json.loads(done.stdout)
