"""A PostgreSQL server of the tests' own, from the binaries of this system."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

START_SECONDS = 60


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: the path's, else the newest that Debian installed."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(debian, key=lambda path: int(path.parts[-3]), reverse=True)
    on_path = shutil.which("initdb")
    for initdb in [*([Path(on_path)] if on_path else []), *newest]:
        folder = initdb.resolve().parent
        if (folder / "postgres").is_file():
            return folder
    return None


def require_binaries() -> Path:
    """As `find_binaries`; a test without them is skipped, and fails where CI must have them."""
    binaries = find_binaries()
    if binaries is None:
        reason = "needs PostgreSQL's initdb and postgres (Debian's package postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return binaries


@contextmanager
def postgres_server(binaries: Path) -> Iterator[str]:
    """A fresh server on a Unix socket in a temporary folder; yields SQLAlchemy's URL of it."""
    # In a folder of its own under /tmp: pytest's are closed to other users, and a socket's path is
    # limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pmlray-pg-", dir="/tmp"))
    try:
        owner = _owner()
        if owner:
            os.chown(folder, owner["user"], owner["group"])
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True, timeout=START_SECONDS, cwd=folder, stdout=subprocess.DEVNULL, **owner,
        )  # fmt: skip
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
                 "-c", "fsync=off"],
                stdout=log, stderr=subprocess.STDOUT, cwd=folder, **owner,
            )  # fmt: skip
        try:
            _wait_for(server, folder)
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            _stop(server)
    finally:
        shutil.rmtree(folder)


def _owner() -> dict[str, Any]:
    """PostgreSQL refuses root: whom to run it as, for subprocess."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _wait_for(server: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(host=str(folder), user="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)


def _stop(server: subprocess.Popen[bytes]) -> None:
    # SIGINT and SIGQUIT are PostgreSQL's fast and immediate shutdowns, of all its processes.
    for how in (signal.SIGINT, signal.SIGQUIT):
        server.send_signal(how)
        try:
            server.wait(timeout=20)
            return
        except subprocess.TimeoutExpired:
            continue
    server.kill()
    server.wait(timeout=20)
