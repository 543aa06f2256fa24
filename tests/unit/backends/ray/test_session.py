"""Ray of one command: stages inside it share it, and only who began it ends it."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private.services import find_bootstrap_address

from pmlray.backends.ray.session import ray_session
from pmlray.errors import RunError

# No autoscaler watches over one machine's Ray, and nobody reads its workers' output; those of a
# cluster of others are theirs.
OWN = [("without monitors", None), ("init", "local")]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of a Ray that is none, by name, with the address it was given."""
    called: list[tuple[str, Any]] = []
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    environment = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_TMPDIR"] = str(tmp_path)

    def init(address: str, **_: Any) -> Any:
        params = ray._private.parameter.RayParams(node_ip_address="127.0.0.1")
        if params.no_monitor and params.include_log_monitor is False:
            called.append(("without monitors", None))
        called.append(("init", address))
        os.makedirs(f"{os.environ['RAY_TMPDIR']}/ray")
        return SimpleNamespace(address_info={"gcs_address": "127.0.0.1:1"})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("pmlray.backends.ray.session.require_cluster", lambda _address: None)
    monkeypatch.setattr(ray, "shutdown", lambda: called.append(("shutdown", None)))
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(called) and called[-1][0] != "shutdown")
    yield called
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers:
        signal.signal(number, handler)


def test_a_session_inside_another_is_that_one(calls: list[tuple[str, Any]]) -> None:
    with ray_session("10.0.0.1:6379"):
        with ray_session("10.0.0.1:6379"):
            assert calls == [("init", "10.0.0.1:6379")]
        assert calls == [("init", "10.0.0.1:6379")]
    assert calls == [("init", "10.0.0.1:6379"), ("shutdown", None)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_session_is_shut_down(
    number: signal.Signals, calls: list[tuple[str, Any]]
) -> None:
    with pytest.raises(KeyboardInterrupt), ray_session(None):
        os.kill(os.getpid(), number)
        signal.pause()
    assert calls == [*OWN, ("shutdown", None)]


def test_a_ray_of_ones_own_finds_no_other_and_leaves_the_environment_as_it_was(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_API_SERVER_ADDRESS": "http://10.0.0.1:8265"}
    os.environ.update(others)
    with ray_session("local"):
        assert calls == OWN and not others.keys() & os.environ.keys()
        # What a process of this Ray reads where it is told no address.
        assert find_bootstrap_address(None) == "127.0.0.1:1"
        inside = os.environ["RAY_TMPDIR"]
    assert {name: os.environ[name] for name in others} == others
    assert os.environ["RAY_TMPDIR"] != inside and find_bootstrap_address(None) is None


def test_where_the_usual_folder_has_a_long_name_its_sockets_go_elsewhere(
    calls: list[tuple[str, Any]], tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 60)
    os.environ["RAY_TMPDIR"] = str(long)
    with ray_session("local"):
        folder = os.environ["RAY_TMPDIR"]
        session = "session_2026-11-28_18-59-24_123456_1234567"
        assert len(f"{folder}/ray/{session}/sockets/plasma_store.1") <= 107
        assert Path(folder, "ray", "ray_current_cluster").is_file()
    # Its files are of use where something went wrong alone.
    assert not Path(folder).exists()
    with pytest.raises(ZeroDivisionError), ray_session("local"):
        folder = os.environ["RAY_TMPDIR"]
        raise ZeroDivisionError
    assert Path(folder).is_dir()
    shutil.rmtree(folder)
    assert calls[: len(OWN)] == OWN and os.environ["RAY_TMPDIR"] == str(long)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [("local", ConnectionError("timed out"), "did not start on this machine"),
     ("local", Exception("The current node timed out during startup."), "memory or /dev/shm"),
     ("10.0.0.1:6379", ConnectionError("timed out"), "cannot be joined (timed out)"),
     ("10.0.0.1:6379", RuntimeError("Version mismatch"), "cannot be joined (Version mismatch)")],
)  # fmt: skip
def test_a_ray_that_does_not_come_up_is_an_error_that_says_what_to_do(
    address: str,
    error: Exception,
    said: str,
    calls: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=re.escape(said)), ray_session(address):
        pass
    assert calls == [("shutdown", None)]
