"""Jobs of Ray Train whose controllers run in the calling process, report their workers, and start
no actors without a use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.config import FailureConfig, RunConfig

from pmlray.backends.ray.worker_plan import WorkerPlan

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext

# Many, since nodes may vanish repeatedly; a worker itself fails a pack that makes no progress.
MOST_LOST_WORKERS = 1000
# Callbacks of Ray Train that start an actor. The PlacementGroupCleaner asks the State API whether
# the controller's actor lives. Without a dashboard it gets no answer. It also finds the address by
# itself, in the environment or in the file of the last `ray start`, so that another cluster may
# report the actor as dead, and the cleaner then removes a running job's devices. `held_resources`
# removes what a dead actor leaves. The DatasetManager hands out Ray datasets, and there are none.
LEFT_OUT = (PlacementGroupCleanerCallback, DatasetsCallback)


class TellsOfWorkers(WorkerGroupCallback):
    """Callback of job `number` that reports to the actor `workers` whether the job has its
    workers."""

    def __init__(self, workers: Any, number: int) -> None:
        self._workers, self._number = workers, number

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:
        """Report that the job waits for workers, also after it has lost some."""
        self._workers.has_workers.remote(self._number, False)

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Report that the workers' processes have started on their devices."""
        self._workers.has_workers.remote(self._number, True)


class UnannouncedWorkers(FixedScalingPolicy):
    """Scaling policy of a fixed number of workers, not announced to Ray's autoscaling coordinator.

    Ray Train waits for that actor to start, and it lives on for as long as the cluster. An
    autoscaler adds nodes for the workers' placement group without it.
    """

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Announce nothing at the start."""

    def _maybe_send_resource_request(self) -> None:
        """Announce nothing while the workers train."""


def trainer_of(
    plan: WorkerPlan,
    train: Callable[[dict[str, Any]], None],
    name: str,
    number: int,
    workers: Any,
) -> Any:
    """Return the trainer of job `number`, whose workers run `train`.

    Its `fit` has to be called in an actor.

    name: of its folder, in which Ray Train looks for the state of an earlier job; workers: the
    actor that hands out packs.
    """
    # Ray Train reads both in this process, and passes them on. By default it polls for workers that
    # have ended every 2 s only, and keeps a process for warnings that a node is about to be
    # preempted, which are not used here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    options: dict[str, Any] = {
        "train_loop_config": {"plan": plan, "workers": workers, "number": number},
        "scaling_config": plan.scaling(),
        "run_config": RunConfig(
            name=name,
            # Ray's own checkpoints are not used: only the newest is available, complete or not.
            storage_path=plan.storage,
            failure_config=FailureConfig(max_failures=MOST_LOST_WORKERS),
            worker_runtime_env={"env_vars": plan.environment},
            # Ray declares only user callbacks here, but accepts all kinds.
            callbacks=[TellsOfWorkers(workers, number)],  # pyrefly: ignore[bad-argument-type]
        ),
    }
    if plan.workers > 1:
        from ray.train.torch import TorchTrainer

        return _lean(TorchTrainer(train, **options))
    # A single worker makes its process group itself: TorchTrainer would load torch, for seconds, in
    # this process.
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return _lean(DataParallelTrainer(train, **options))


def _lean(trainer: Any) -> Any:
    """Return the trainer, changed so that its controller runs in the process that calls `fit`, and
    starts only the actors that are used.

    Ray Train would start an actor for the controller, which takes seconds to import what this
    process has imported already, before a worker can start.
    """
    make = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in make() if not isinstance(callback, LEFT_OUT)
    ]
    policy = UnannouncedWorkers(trainer.scaling_config)

    def run(**options: Any) -> Any:
        given: dict[str, Any] = {**options, "scaling_policy": policy}
        controller = TrainController(**given)
        asyncio.run(controller.run())
        return controller.get_result()

    trainer._initialize_and_run_controller = run
    return trainer
