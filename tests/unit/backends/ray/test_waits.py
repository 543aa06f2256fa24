"""A study's waits for workers end, and say what they wait for."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayError

from pmlray.backends.ray import waits as ray_waits
from pmlray.backends.ray.waits import START_SECONDS, await_actors, watching
from pmlray.errors import RunError


class Runner:
    """Has waited so long for a worker, at each look; an error is raised."""

    def __init__(self, *waited: float | Exception, niceness: int | Exception = 0) -> None:
        self._waited, self._niceness = list(waited), niceness
        self.bounds: list[float | None] = []
        self.given_up: list[str] = []
        self.looked = threading.Event()

    def waited(self, seconds: float | None = None) -> float:
        self.bounds.append(seconds)
        if len(self._waited) == 1:
            self.looked.set()
        return _told(self._waited.pop(0) if len(self._waited) > 1 else self._waited[0])

    def niceness(self) -> int:
        return _told(self._niceness)

    def describe_shortage(self) -> str:
        return "It wants 2 CPU."

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.looked.set()


def _told(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def watched(runner: Any, monkeypatch: pytest.MonkeyPatch, grows: bool | Exception) -> list[str]:
    """With what the runs are given up, once the last look was had."""
    monkeypatch.setattr(ray_waits, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(ray_waits, "can_grow", lambda: _told(grows))
    with watching(runner):
        assert runner.looked.wait(30)
    return runner.given_up


def test_a_head_that_starts_no_actor_is_an_error_in_the_end() -> None:
    runner: Any = Runner(GetTimeoutError("late"))
    with pytest.raises(RunError, match="has started no actor within 300 s"):
        await_actors(runner)
    assert runner.bounds == [START_SECONDS]


@pytest.mark.parametrize(
    ("niceness", "warned"), [(0, False), (15, True), (RayError("busy"), False)]
)
def test_workers_that_give_way_are_warned_of(
    niceness: int | Exception,
    warned: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.nice", lambda _: 0)
    with caplog.at_level(logging.WARNING, "pmlray"):
        await_actors(Runner(0.0, niceness=niceness))  # type: ignore[arg-type]
    assert ("set RAY_worker_niceness=0" in caplog.text) is warned


@pytest.mark.parametrize(
    ("waited", "grows", "ends"),
    [
        ((0.0, 299.0, 299.9), False, None),
        ((299.0, 300.0), False, "no worker could start within 300 s, and nothing adds nodes"),
        ((300.0, 3599.0), True, None),
        ((3599.0, 3600.0), True, "no worker could start within 3600 s. It wants 2 CPU."),
        # Ray does not tell what there is: as if it could grow.
        ((300.0, 3599.0), KeyError("table"), None),
        ((3599.0, 3600.0), KeyError("table"), "What holds the devices is not known"),
        # The actor that knows is gone: its runs tell.
        ((RayError("gone"), RayError("gone")), False, None),
    ],
)
def test_a_wait_for_workers_ends_where_none_can_come(
    waited: tuple[float | Exception, ...],
    grows: bool | Exception,
    ends: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = watched(Runner(*waited), monkeypatch, grows)
    assert len(said) == (ends is not None)
    assert all(ends is not None and ends in reason for reason in said)


def test_what_is_waited_for_is_said_every_half_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, "pmlray"):
        watched(Runner(29.0, 30.0, 31.0, 59.0, 60.0, 0.0, 30.0, 0.0), monkeypatch, False)
    said = [record.message for record in caplog.records]
    assert [words.split(". ")[0] for words in said] == [
        "no worker yet, after 30 s",
        "no worker yet, after 60 s",
        "no worker yet, after 30 s",
    ]
    assert all("It wants 2 CPU." in words for words in said)
