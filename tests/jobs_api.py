"""A stand-in for the Jobs API of a Ray cluster, for tests of what speaks to one.

It keeps the REST interface that Ray documents, so that Ray's own client can be used against it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


@dataclass
class FakeCluster:
    """A cluster's state: what was submitted and uploaded.

    `token` None lets anyone in; `busy` submissions find no agent, as right after a start; jobs that
    ask find its workers at `niceness`, None: they fail.
    """

    ray_version: str = ray.__version__
    token: str | None = None
    busy: int = 0
    niceness: int | None = 0
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: list[bytes] = field(default_factory=list)
    address: str = ""

    def add(self, submission_id: str, started: float, search_id: str = "", **more: Any) -> None:
        """A job that is already there; started: Unix seconds."""
        self.jobs[submission_id] = {
            "type": "SUBMISSION", "submission_id": submission_id, "status": "RUNNING",
            "entrypoint": "python -m pmlray", "start_time": int(started * 1000),
            "metadata": {"pmlray.search_id": search_id} if search_id else {}, **more,
        }  # fmt: skip


@contextmanager
def running(cluster: FakeCluster) -> Iterator[FakeCluster]:
    """Serve the cluster's Jobs API on a port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    cluster.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asks_for_niceness(job: dict[str, Any]) -> bool:
    return "niceness" in job["entrypoint"]


def _handler(cluster: FakeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")[1:]
            if parts == ["version"]:
                self._answer(200, {"version": "4", "ray_version": cluster.ray_version})
            elif parts[0] == "packages":
                self._answer(404, {})
            elif parts == ["jobs"]:
                self._answer(200, list(cluster.jobs.values()))
            elif parts[1] not in cluster.jobs:
                self._answer(404, {})
            elif parts[2:] == ["logs"]:
                asks = asks_for_niceness(cluster.jobs[parts[1]])
                answer = "no" if cluster.niceness is None else f"niceness {cluster.niceness}"
                self._answer(200, {"logs": f"{answer if asks else f'log of {parts[1]}'}\n"})
            else:
                self._answer(200, cluster.jobs[parts[1]])

        def do_DELETE(self) -> None:
            del cluster.jobs[self.path.strip("/").split("/")[2]]
            self._answer(200, {"deleted": True})

        def do_PUT(self) -> None:
            cluster.packages.append(self._body())
            self._answer(200, {})

        def do_POST(self) -> None:
            parts = self.path.strip("/").split("/")[1:]
            body = self._body()
            if parts[2:] == ["stop"]:
                cluster.jobs[parts[1]]["status"] = "STOPPED"
                self._answer(200, {"stopped": True})
                return
            if cluster.busy:
                cluster.busy -= 1
                self._answer(500, "No available agent to submit job, please try again later.")
                return
            asked = json.loads(body)
            job = asked.get("submission_id") or f"raysubmit_{len(cluster.jobs)}"
            if job in cluster.jobs:
                # As ray/dashboard/modules/job/job_manager.py words it.
                self._answer(500, f"ValueError: Job with submission_id {job} already exists.")
                return
            cluster.add(job, 0.0, runtime_env=asked["runtime_env"])
            cluster.jobs[job] |= {k: asked[k] for k in ("entrypoint", "metadata")}
            if asks_for_niceness(cluster.jobs[job]):
                failed = cluster.niceness is None
                cluster.jobs[job]["status"] = "FAILED" if failed else "SUCCEEDED"
            self._answer(200, {"job_id": job, "submission_id": job})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, code: int, value: Any) -> None:
            wanted = f"Bearer {cluster.token}"
            if cluster.token is not None and self.headers.get("Authorization") != wanted:
                code, value = 401, "Unauthorized: Missing authentication token"
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """A test's output is no place for an access log."""

    return Handler
