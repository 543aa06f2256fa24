"""A store that the driver sees and the node that trains does not: the search ends with that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import SMALL, SMOKE, end_group, free_port, pmlray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RAY = str(Path(sys.executable).parent / "ray")
# A node of its own in a mount namespace where another folder lies over the store.
ELSEWHERE = 'mount -t tmpfs -o size=64m none "$1" && shift && exec "$@"'


@contextmanager
def process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield started
    finally:
        end_group(started)


def await_nodes(n: int, address: str, environment: dict[str, str]) -> None:
    script = (
        "import sys, time, ray\n"
        "end = time.monotonic() + 90\n"
        "while True:\n"
        "    try: ray.init(sys.argv[2], log_to_driver=False); break\n"
        "    except ConnectionError:\n"
        "        if time.monotonic() > end: raise\n"
        "        time.sleep(1)\n"
        "while sum(node['Alive'] for node in ray.nodes()) < int(sys.argv[1]):\n"
        "    assert time.monotonic() < end, ray.nodes()\n"
        "    time.sleep(0.5)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(n), address],
        capture_output=True, text=True, timeout=150, env=environment, check=True,
    )  # fmt: skip


def test_a_node_that_does_not_see_the_store_ends_the_search(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(store)]).returncode:
        pytest.skip("this machine lets nobody mount")
    with (
        tempfile.TemporaryDirectory(prefix="h-", dir="/tmp", ignore_cleanup_errors=True) as head,
        tempfile.TemporaryDirectory(prefix="n-", dir="/tmp", ignore_cleanup_errors=True) as node,
    ):
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": head,
        }
        port = free_port()
        address = f"127.0.0.1:{port}"
        start = [RAY, "start", "--block", "--disable-usage-stats"]
        # The head has no core: whoever trains is on the other node.
        first = [*start, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        second = [*start, f"--address={address}", "--num-cpus=2", f"--temp-dir={node}"]
        apart = ["unshare", "-rm", "sh", "-c", ELSEWHERE, "sh", str(store)]
        with process(first, environment), process([*apart, *second], environment):
            await_nodes(2, address, environment)
            code, _, err = pmlray(
                *("search", str(SMOKE), *SMALL, "--store", str(store), "--address", address),
                timeout=400,
                **{name: environment[name] for name in ("RAY_AUTH_MODE", "RAY_TMPDIR")},
            )
    assert code == 3, err[-3000:]
    assert f"does not see the store {store}" in err and "every node sees" in err
    assert not list((store / "observations").iterdir()), err[-3000:]
    assert not list((store / "failures").iterdir()), err[-3000:]
