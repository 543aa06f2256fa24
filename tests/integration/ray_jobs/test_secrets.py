"""Planted secrets, looked for everywhere after a whole search and while it ran."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pmlray.config.bases.models import cache_root
from tests.integration.conftest import SMALL, SMOKE, end_group
from tests.postgres import postgres_server, require_binaries

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# As long as Ray wants its token to be, and found nowhere by chance.
SECRETS = {
    name: f"{number:x}" * 8 + "5ec2e7" * 9
    for number, name in enumerate(["ray", "mlflow", "postgres", "hub", "file"], start=10)
}


@contextmanager
def watched_command_lines() -> Iterator[dict[str, bytes]]:
    """The command lines, by secret, of whatever process of this machine shows one."""
    found: dict[str, bytes] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for process in Path("/proc").iterdir():
                try:
                    line = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
                except OSError:
                    continue
                found.update({n: line for n, s in SECRETS.items() if s.encode() in line})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def holding(folder: Path) -> list[tuple[Path, str]]:
    """The files below a folder that hold a secret, and which."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, folder
    return [(f, n) for f in files for n, s in SECRETS.items() if s.encode() in f.read_bytes()]


@contextmanager
def kept_files(source: Path, kept: Path) -> Iterator[None]:
    """Hard links in `kept` to every file that is in `source` for a fifth of a second: a search that
    ends well removes what its Ray has written."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.2):
            # What is removed meanwhile was there for the look before.
            with suppress(OSError):
                for path in source.rglob("*"):
                    link = kept / "-".join(path.relative_to(source).parts)
                    if path.is_file() and not path.is_symlink() and not link.exists():
                        os.link(path, link)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(400)
def test_no_planted_secret_is_found_anywhere(tmp_path: Path) -> None:
    binaries = require_binaries()
    # In a longer one there is no room for the names of sockets, and Ray goes elsewhere.
    ray_folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    home, store, work = tmp_path / "home", tmp_path / "store", tmp_path / "work"
    kept = Path(tempfile.mkdtemp(prefix="pmlray-kept-", dir="/tmp"))
    (home / ".mlflow").mkdir(parents=True)
    work.mkdir()
    (home / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = u\nmlflow_tracking_password = {SECRETS['file']}\n"
    )
    try:
        with postgres_server(binaries) as url:
            environment = {
                **os.environ,
                "HOME": str(home),
                "PMLRAY_CACHE": str(cache_root()),
                "RAY_TMPDIR": str(ray_folder),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": SECRETS["ray"],
                "MLFLOW_TRACKING_USERNAME": "u",
                "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow"],
                "HF_TOKEN": SECRETS["hub"],
                # The server trusts everybody who reaches its socket, with any password.
                "MLFLOW_TRACKING_URI": url.replace("postgres@", f"postgres:{SECRETS['postgres']}@"),
            }
            with watched_command_lines() as on_command_lines, kept_files(ray_folder, kept):
                process = subprocess.Popen(
                    [sys.executable, "-m", "pmlray", "search", str(SMOKE), *SMALL, "--store",
                     str(store), "--json"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=work,
                    env=environment, start_new_session=True,
                )  # fmt: skip
                try:
                    out, err = process.communicate(timeout=280)
                finally:
                    end_group(process)
            assert process.returncode == 0, err[-3000:]
            assert "entries wait" not in err
            socket = url.rpartition("=")[2]
            database = subprocess.run(
                [binaries / "pg_dump", "-h", socket, "-U", "postgres", "postgres"],
                check=True, capture_output=True, text=True, timeout=60,
            ).stdout  # fmt: skip
        assert json.loads(out)["search_id"] in database
        # MLflow's artifacts lie in the store, Ray's logs in its own folder.
        assert list((store / "mlflow-artifacts").rglob("report.html"))
        assert not list(work.iterdir())
        told = {"stdout": out, "stderr": err, "MLflow's database": database}
        in_text = [(where, n) for where, t in told.items() for n, s in SECRETS.items() if s in t]
        assert on_command_lines == {}
        assert in_text == []
        assert holding(store) == []
        assert holding(kept) == []
    finally:
        for folder in (ray_folder, kept):
            shutil.rmtree(folder, ignore_errors=True)
