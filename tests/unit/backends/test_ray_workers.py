"""What Ray is asked for a pack's workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from pmlray.backends import ray_workers
from pmlray.backends.ray_workers import WorkerPlan, packs_of
from pmlray.engine.host_memory import CPU_ALLOCATOR


@pytest.mark.parametrize(
    ("gpus", "cpus", "resources", "environment"),
    [(0, 2, {"CPU": 2}, CPU_ALLOCATOR), (1, 4, {"GPU": 1}, {})],
    ids=["cpu", "gpu"],
)
def test_a_worker_that_trains_on_a_cpu_gets_the_allocators_environment(
    gpus: int,
    cpus: int,
    resources: dict[str, int],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    search: Any = None
    plan = WorkerPlan(search, "store", gpus, cpus, 1, 60.0, workers=3)
    scaling = plan.scaling()
    assert (scaling.num_workers, scaling.resources_per_worker) == (3, resources)
    assert plan.environment == {**environment, "RAY_worker_niceness": "0"}
    # What the cluster was given stays.
    monkeypatch.setenv("RAY_worker_niceness", "5")
    assert plan.environment == {**environment, "RAY_worker_niceness": "5"}


class Actor:
    """Answers `next_pack` with what it is given, one after the other; an error is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self._answers = list(answers)
        self.next_pack: Any = SimpleNamespace(remote=lambda _number: self._answers.pop(0))

        def get(answer: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(ray, "get", get)
        monkeypatch.setattr(ray_workers, "RETRY_SECONDS", 0.0)


def test_a_worker_whose_actor_is_gone_ends_instead_of_failing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack: Any = object()
    away, gone = ActorUnavailableError("busy", None), ActorDiedError()
    assert list(packs_of(Actor(monkeypatch, pack, away, "wait", gone), 0)) == [pack, None]
    assert list(packs_of(Actor(monkeypatch, "wait", pack, "end"), 0)) == [None, pack]
