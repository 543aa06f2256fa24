"""Real engines for the integration tests; every process started here is ended here, by its id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "searches" / "smoke.yaml"
# The smallest search that still has two rounds.
SMALL = ["--set", "design={n_initial: 2, pack_size: 2}", "--set", "space.lora_rank=[1, 2]",
         "--set", "space.seq_len=[16, 32]", "--set", "name=small"]  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A search that ran to its end: its JSON, its store, and each line that it said on stderr with
    the seconds since it was started."""

    found: dict[str, Any]
    store: Path
    said: tuple[tuple[float, str], ...]


def pmlray(*arguments: str, timeout: float = 280, **environment: str) -> tuple[int, str, str]:
    """Run a pmlray command as a user would; returns (exit code, stdout, stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pmlray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        end_group(process)
    return process.returncode, out, err


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and everything that it started in its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke search, run once for all tests that look at its results, in whatever process."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _searched(tmp_path_factory.mktemp("smoke"))
    # The processes of one run have their folders side by side.
    folder = tmp_path_factory.getbasetemp().parent / "smoke"
    with FileLock(folder.with_suffix(".lock"), timeout=300):
        done = folder / "finished.json"
        if not done.exists():
            folder.mkdir(exist_ok=True)
            finished = _searched(folder)
            done.write_text(json.dumps([finished.found, finished.said]))
        found, said = json.loads(done.read_text())
    return Finished(found, folder / "store", tuple((at, line) for at, line in said))


def _searched(folder: Path) -> Finished:
    """Run the smoke search with its store in a folder."""
    store, result, said = folder / "store", folder / "result.json", list[tuple[float, str]]()
    command = [sys.executable, "-m", "pmlray", "search", str(SMOKE), "--store", str(store)]
    began = time.monotonic()
    with result.open("w") as out:
        process = subprocess.Popen(
            [*command, "--json"],
            stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        # Ends the search where it hangs, and with it the lines.
        limit = threading.Timer(280, end_group, [process])
        limit.start()
        try:
            assert process.stderr is not None
            said += [(time.monotonic() - began, line.rstrip()) for line in process.stderr]
            code = process.wait(timeout=30)
        finally:
            limit.cancel()
            end_group(process)
    err = "\n".join(line for _, line in said)
    assert code == 0, err[-3000:]
    assert "Failed to fetch metrics" not in err, err[-3000:]
    return Finished(json.loads(result.read_text()), store, tuple(said))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Cluster:
    """A running Ray head that wants a token."""

    head: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def token_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray head with token authentication on, on ports of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    token = folder / "token"
    token.write_text("a" * 64)
    port, dashboard = free_port(), free_port()
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A cluster without any pulled model.
        "PMLRAY_CACHE": str(folder / "cache"),
        # Unix socket paths are limited to 107 bytes; pytest's folders are too long for Ray.
        "RAY_TMPDIR": "/tmp",
        # As in an activated environment: a job's `python` is found on the head's path.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=2",
         # Without its own port, the agent that starts jobs fails beside another Ray.
         f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"],
        stdout=log, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment}, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for_jobs_api(address, environment, folder / "head.log")
        yield Cluster(f"127.0.0.1:{port}", address, environment)
    finally:
        end_group(head)
        log.close()


def _wait_for_jobs_api(address: str, environment: dict[str, str], log: Path) -> None:
    script = (
        "import sys, time\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "end = time.monotonic() + 90\n"
        "while True:\n"
        "    try:\n"
        "        JobSubmissionClient(sys.argv[1]).submit_job(entrypoint='true'); break\n"
        "    except (ConnectionError, RuntimeError):\n"
        "        if time.monotonic() > end: raise\n"
        "        time.sleep(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, address],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + log.read_text()[-2000:]
