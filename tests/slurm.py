"""A Slurm of the tests' own: a controller and two nodes on this machine, from its binaries."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVERS = ("munged", "slurmctld", "slurmd")
START_SECONDS = 60
NODES = ("node1", "node2")


@dataclass(frozen=True)
class Slurm:
    """The environment in which its commands talk to it."""

    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """What a Slurm command prints."""
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job, such as JobState and Restarts."""
        told = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.split("=", 1) for field in told if "=" in field)


def require_slurm() -> None:
    """A test without Slurm's servers, or without the right to start them, is skipped."""
    missing = [name for name in (*SERVERS, "sbatch") if _found(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            "needs root and Slurm (Debian's packages slurmctld, slurmd, slurm-client and munge);"
            f" missing: {', '.join(missing) or 'root'}"
        )


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """A partition of two nodes, each with half of what a test needs."""
    # Unix sockets have short paths.
    folder = Path(tempfile.mkdtemp(prefix="pmlray-slurm-", dir="/tmp"))
    config = _configure(folder)
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/key",
         f"--socket={folder}/munge", f"--pid-file={folder}/munged.pid",
         f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"],
        ["slurmctld", "-D", "-f", str(config)],
        *(["slurmd", "-D", "-N", node, "-f", str(config)] for node in NODES),
    ]  # fmt: skip
    slurm = Slurm({**os.environ, "SLURM_CONF": str(config)})
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}-{len(servers)}.out").open("w") as out:
                command[0] = _found(command[0]) or command[0]
                servers.append(
                    subprocess.Popen(
                        command, env=slurm.environment, stdout=out, stderr=subprocess.STDOUT
                    )
                )
            if len(servers) == 1:
                _wait_until((folder / "munge").exists, servers, folder)
        _wait_until(lambda: _idle(slurm) == len(NODES), servers, folder)
        yield slurm
        subprocess.run(["scancel", "--user=root"], env=slurm.environment, timeout=60, check=True)
        _wait_until(lambda: not slurm.call("squeue", "--noheader"), servers, folder)
    finally:
        for server in reversed(servers):
            server.send_signal(signal.SIGTERM)
        for server in servers:
            server.wait(timeout=60)
        shutil.rmtree(folder)


def _configure(folder: Path) -> Path:
    folder.chmod(0o755)
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o600)
    (folder / "state").mkdir()
    host = socket.gethostname()
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
        " RealMemory=1000 Gres=gpu:1"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    config = folder / "slurm.conf"
    # Credentials of five seconds: a job that is queued again waits until they are over.
    config.write_text(
        f"""ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
KillWait=60
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
    )
    (folder / "gres.conf").write_text(
        f"NodeName={','.join(NODES)} Name=gpu Count=1 File=/dev/null\n"
    )
    return config


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [server.getsockname()[1] for server in servers]


def _idle(slurm: Slurm) -> int:
    told = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle"],
        env=slurm.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return len(told.stdout.splitlines())


def _wait_until(
    done: Callable[[], bool], servers: list[subprocess.Popen[bytes]], folder: Path
) -> None:
    end = time.monotonic() + START_SECONDS
    while not done():
        if any(s.poll() is not None for s in servers) or time.monotonic() > end:
            said = "\n".join(f.read_text()[-1000:] for f in sorted(folder.glob("*.out")))
            pytest.fail(f"Slurm did not start or end in {START_SECONDS} s: {said}")
        time.sleep(0.1)
