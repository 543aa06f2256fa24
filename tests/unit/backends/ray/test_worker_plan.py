"""What Ray is asked for a pack's workers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from pmlray.backends.ray import controllers, worker_plan
from pmlray.backends.ray.controllers import trainer_of
from pmlray.backends.ray.worker_plan import WorkerPlan, pack_stream
from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR
from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN, CHOICES


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WorkerPlan]:
    """Plans made where nobody has chosen how threads wait."""
    for name in (*CHOICES, "RAY_worker_niceness"):
        monkeypatch.delenv(name, raising=False)

    def make(gpus: int, cpus: int, workers: int) -> WorkerPlan:
        search: Any = None
        return WorkerPlan(search, "store", gpus, cpus, 1, 60.0, workers)

    return make


@pytest.mark.parametrize(
    ("gpus", "cpus", "resources", "environment"),
    [(0, 2, {"CPU": 2}, CPU_ALLOCATOR), (1, 4, {"GPU": 1}, {})],
    ids=["cpu", "gpu"],
)
def test_a_worker_that_trains_on_a_cpu_gets_the_allocators_environment(
    plan_of: Callable[..., WorkerPlan],
    gpus: int,
    cpus: int,
    resources: dict[str, int],
    environment: dict[str, str],
) -> None:
    scaling = plan_of(gpus, cpus, 3).scaling()
    assert (scaling.num_workers, scaling.resources_per_worker) == (3, resources)
    # A worker alone bounds the waits of its threads itself; into others Ray Train loads torch.
    started = {**environment, "RAY_worker_niceness": "0"}
    assert plan_of(gpus, cpus, 1).environment == started
    assert plan_of(gpus, cpus, 3).environment == {**started, **BOUNDED_SPIN}


def test_workers_give_way_as_the_cluster_was_told(
    plan_of: Callable[..., WorkerPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "5")
    assert plan_of(1, 4, 1).environment == {"RAY_worker_niceness": "5"}


def test_workers_wait_as_the_driver_or_the_node_has_chosen(
    plan_of: Callable[..., WorkerPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    plan, niceness = plan_of(1, 4, 3), {"RAY_worker_niceness": "0"}
    assert plan.barriers == {"OMP_WAIT_POLICY": "ACTIVE"}
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert plan.environment == {"OMP_WAIT_POLICY": "ACTIVE", **niceness}
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert plan.environment == {"GOMP_SPINCOUNT": "5", **niceness}


def test_beside_a_job_runs_no_actor_that_asks_a_foreign_cluster_or_has_nothing_to_do(
    plan_of: Callable[..., WorkerPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Controller:
        """Runs in this process, without any actor."""

        def __init__(self, **options: Any) -> None:
            given.update(options)

        async def run(self) -> None:
            given["ran"] = True

        def get_result(self) -> str:
            return "result"

    monkeypatch.setattr(controllers, "TrainController", Controller)
    trainer = trainer_of(plan_of(0, 1, 1), lambda _: None, "name", 0, None)
    usual = {type(one) for one in type(trainer)._create_default_callbacks(trainer)}
    left_out = {PlacementGroupCleanerCallback, DatasetsCallback}
    assert left_out < usual
    assert {type(one) for one in trainer._create_default_callbacks()} == usual - left_out

    # No Ray is connected, so that starting an actor would fail.
    assert trainer._initialize_and_run_controller(scaling_policy=None, other=1) == "result"
    policy = given["scaling_policy"]
    assert given["other"] == 1 and given["ran"]
    # There is no Ray here: an announcement to its autoscaling coordinator would fail.
    policy.after_controller_start(SimpleNamespace(run_id="id"))
    decided = policy.make_decision_for_non_running_worker_group()
    assert decided == ResizeDecision(num_workers=1, resources_per_worker={"CPU": 1})
    assert isinstance(policy.make_decision_for_running_worker_group(None, None), NoopDecision)
    policy.before_controller_abort()


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
        monkeypatch.setattr(worker_plan, "RETRY_SECONDS", 0.0)


def test_a_worker_whose_actor_is_gone_ends_instead_of_failing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack: Any = object()
    away, gone = ActorUnavailableError("busy", None), ActorDiedError()
    assert list(pack_stream(Actor(monkeypatch, pack, away, "wait", gone), 0)) == [pack, None]
    assert list(pack_stream(Actor(monkeypatch, "wait", pack, "end"), 0)) == [None, pack]
