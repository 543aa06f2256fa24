"""Ray of one command: stages inside it share it, and only who began it ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from pmlray.backends.ray_session import ray_session


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of a Ray that is none, by name, with the address it was given."""
    called: list[tuple[str, Any]] = []
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGINT)]
    environment = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)

    def init(address: str, **_: Any) -> None:
        called.append(("init", address))

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: called.append(("shutdown", None)))
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(called) and called[-1][0] == "init")
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


def test_an_interrupted_session_is_shut_down(calls: list[tuple[str, Any]]) -> None:
    with pytest.raises(KeyboardInterrupt), ray_session(None):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert calls == [("init", "local"), ("shutdown", None)]
