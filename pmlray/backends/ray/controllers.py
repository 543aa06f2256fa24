"""The jobs of Ray Train, whose controllers tell of their workers, and have no placement group
cleaner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2.api.config import FailureConfig, RunConfig

from pmlray.backends.ray.worker_plan import WorkerPlan

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext

# Nodes may vanish again and again; a pack that gets nowhere is given up by its worker.
MOST_LOST_WORKERS = 1000


class TellsOfWorkers(ControllerCallback, WorkerGroupCallback):
    """Runs in the controller of job `number`; tells the actor `workers` who that is, and whether
    the job has its workers."""

    def __init__(self, workers: Any, number: int) -> None:
        self._workers, self._number = workers, number

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """The controller is there, and has asked for nothing yet."""
        me = ray.get_runtime_context().get_actor_id()
        self._workers.made_by.remote(self._number, me)

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:
        """Waits for devices from here on, for workers that it had lost too."""
        self._workers.has_workers.remote(self._number, False)

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Their processes are there, on their devices."""
        self._workers.has_workers.remote(self._number, True)


def trainer_of(
    plan: WorkerPlan,
    train: Callable[[dict[str, Any]], None],
    name: str,
    number: int,
    workers: Any,
) -> Any:
    """The trainer of job `number`, whose workers run `train`.

    name: of its folder, in which Ray Train looks for what an earlier job left; workers: the actor
    that hands out packs.
    """
    options: dict[str, Any] = {
        "train_loop_config": {"plan": plan, "workers": workers, "number": number},
        "scaling_config": plan.scaling(),
        "run_config": RunConfig(
            name=name,
            # Ray's own checkpoints are not used: of them the newest alone can be had, whole or not.
            storage_path=plan.storage,
            failure_config=FailureConfig(max_failures=MOST_LOST_WORKERS),
            worker_runtime_env={"env_vars": plan.environment},
            # Ray declares its users' own kind of callback alone, and takes all.
            callbacks=[TellsOfWorkers(workers, number)],  # pyrefly: ignore[bad-argument-type]
        ),
    }
    if plan.workers > 1:
        from ray.train.torch import TorchTrainer

        return _without_cleaner(TorchTrainer(train, **options))
    # A worker alone makes its group of one itself: TorchTrainer's would load torch, for seconds, in
    # this process and in Ray Train's controller, one after the other.
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return _without_cleaner(DataParallelTrainer(train, **options))


def _without_cleaner(trainer: Any) -> Any:
    """The trainer, whose controller has no PlacementGroupCleaner beside it.

    That actor asks the State API whether the controller lives. Where there is no dashboard it never
    learns; and it finds the address by itself, in the environment or in the file of the last
    `ray start`, so that a foreign cluster may tell it that the controller is dead, whereupon it
    takes a running job's devices away. What a dead controller leaves, `held_resources` removes.
    """
    make = trainer._create_default_callbacks
    trainer._create_default_callbacks = lambda: [
        callback for callback in make() if not isinstance(callback, PlacementGroupCleanerCallback)
    ]
    return trainer
