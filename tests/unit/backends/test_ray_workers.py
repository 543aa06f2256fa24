"""What Ray is asked for a pack's workers."""

from __future__ import annotations

from typing import Any

import pytest

from pmlray.backends.ray_workers import WorkerPlan
from pmlray.engine.host_memory import CPU_ALLOCATOR


@pytest.mark.parametrize(
    ("gpus", "cpus", "resources", "environment"),
    [(0, 2, {"CPU": 2}, CPU_ALLOCATOR), (1, 4, {"GPU": 1}, {})],
    ids=["cpu", "gpu"],
)
def test_a_worker_that_trains_on_a_cpu_gets_the_allocators_environment(
    gpus: int, cpus: int, resources: dict[str, int], environment: dict[str, str]
) -> None:
    search: Any = None
    plan = WorkerPlan(search, "store", gpus, cpus, 1, 60.0, workers=3)
    scaling = plan.scaling()
    assert (scaling.num_workers, scaling.resources_per_worker) == (3, resources)
    assert plan.environment == environment
