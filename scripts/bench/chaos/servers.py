"""What a search leans on, started here so that it can be killed: Ray nodes, MLflow, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.postgres import _owner, find_binaries

BIN = Path(sys.executable).parent
START_SECONDS = 240


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own, its output in a file."""
    with log.open("a") as file:
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until someone listens; RuntimeError when the process ends or it takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nobody listens on port {port}: {log.read_text()[-2000:]}")


class RayNodes:
    """A head without CPUs and worker nodes of one CPU, with token authentication."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder, self._n_workers = folder, workers
        self.token, kept = "a" * 64, folder / "token"
        kept.write_text(self.token)
        kept.chmod(0o600)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(kept),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": "/tmp",
            "OMP_NUM_THREADS": "1",
            # As in an activated environment: a job's `python` is found on the head's path.
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            # A node is told dead after 10 s without an answer instead of after 30.
            "RAY_health_check_failure_threshold": "3",
        }
        self.start()

    def start(self) -> None:
        """Start all nodes, on ports that were not used before."""
        port, dashboard = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self._head = self._ray(
            "--head", f"--port={port}", "--num-cpus=0", f"--dashboard-port={dashboard}"
        )
        await_port(port, self._head, self._folder / "ray.log")
        await_port(dashboard, self._head, self._folder / "ray.log")
        self.workers = [self.start_worker() for _ in range(self._n_workers)]

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Another node of one CPU.

        In a folder of its own: nodes of one machine that share Ray's would each remove a job's
        upload and unpack it anew, under the job that runs from it.
        """
        folder = tempfile.mkdtemp(prefix="node-", dir=self._folder)
        return self._ray(f"--address={self.address}", "--num-cpus=1", f"--temp-dir={folder}")

    def kill(self) -> None:
        """End all nodes, and whatever runs on them."""
        for process in (*self.workers, self._head):
            for pid in descendants(process.pid)[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            end(process)

    def processes(self, part: str) -> list[int]:
        """The processes of these nodes whose command line holds `part`."""
        nodes = (self._head, *self.workers)
        return [pid for node in nodes for pid in descendants(node.pid) if part in command_of(pid)]

    def _ray(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / "ray"), "start", *arguments, "--block", "--disable-usage-stats",
                   f"--dashboard-agent-listen-port={free_port()}",
                   f"--object-store-memory={100 * 2**20}"]  # fmt: skip
        return start(command, self._folder / "ray.log", self.environment)


class Postgres:
    """A PostgreSQL server that may be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        binaries = find_binaries()
        if binaries is None:
            raise RuntimeError("needs PostgreSQL's initdb and postgres (package postgresql)")
        self._binaries, self.folder, self._owner = binaries, folder, _owner()
        folder.mkdir()
        if self._owner:
            os.chown(folder, self._owner["user"], self._owner["group"])
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust"],
            check=True, timeout=120, cwd=folder, stdout=subprocess.DEVNULL, **self._owner,
        )  # fmt: skip
        self.url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        self.start()

    def start(self) -> None:
        """Start the server; clients connect once it is ready."""
        with Path(f"{self.folder}.log").open("a") as log:
            self.process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", "-k", self.folder,
                 "-c", "listen_addresses="],
                stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, start_new_session=True,
                **self._owner,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while not (self.folder / ".s.PGSQL.5432").exists() and time.monotonic() < until:
            time.sleep(0.1)

    def kill(self) -> None:
        """As when its machine loses power."""
        end(self.process)
        for left in ("data/postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            (self.folder / left).unlink(missing_ok=True)


class MlflowServer:
    """An MLflow server on a database, that may be killed and started again."""

    def __init__(self, folder: Path, database: str) -> None:
        self._folder, self._database, self._port = folder, database, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()
        await_port(self._port, self.process, folder / "mlflow.log")

    def start(self) -> None:
        """Start the server; it answers some seconds later."""
        self.process = start(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1",
             "--backend-store-uri", self._database,
             "--artifacts-destination", str(self._folder / "artifacts")],
            self._folder / "mlflow.log",
            # Eight processes that nothing here needs.
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip

    def kill(self) -> None:
        """All of its processes."""
        end(self.process)


class SmallDisk:
    """A file system of its own for the store, of a few megabytes; needs the right to mount."""

    def __init__(self, folder: Path, megabytes: int = 48) -> None:
        self.folder = folder
        folder.mkdir()
        found = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        self.mounted = found.returncode == 0

    def fill(self) -> None:
        """Leave no byte."""
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", 0) as file:
            while True:
                file.write(b"0" * 4096)

    def free(self) -> None:
        """Give the space back."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away, with all that is on it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False, timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


def descendants(root: int) -> list[int]:
    """A process and all that it started, as far as their parents live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, open_ = [], [root]
    while open_:
        found.append(open_.pop())
        open_ += children.get(found[-1], [])
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty where there is none."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""
