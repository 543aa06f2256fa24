"""What Ray is asked for a pack's workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pmlray.backends.ray_workers import WorkerPlan
from pmlray.engine.host_memory import CPU_ALLOCATOR
from pmlray.engine.thread_barriers import BOUNDED_SPIN, CHOICES


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WorkerPlan]:
    """Plans made where nobody has chosen how threads wait."""
    for name in CHOICES:
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
    assert plan_of(gpus, cpus, 1).environment == environment
    assert plan_of(gpus, cpus, 3).environment == {**environment, **BOUNDED_SPIN}


def test_workers_wait_as_the_driver_or_the_node_has_chosen(
    plan_of: Callable[..., WorkerPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    plan = plan_of(1, 4, 3)
    assert plan.barriers == {"OMP_WAIT_POLICY": "ACTIVE"}
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert plan.environment == {"OMP_WAIT_POLICY": "ACTIVE"}
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert plan.environment == {"GOMP_SPINCOUNT": "5"}
