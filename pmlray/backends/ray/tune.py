"""Search driven by Ray Tune: one trial is one pack, chosen when the trial is made.

Tune's own experiment state is not used to resume: a new Tuner continues from the store, the record
of truth. A trial reserves no CPU; it runs on the head node while its Ray Train worker trains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from ray.tune.search import Searcher

from pmlray.backends.ray.train import RayTrainRunner, await_workers, collect
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.errors import PmlrayError, RunError
from pmlray.ports import PackRunner, PackSource
from pmlray.types import Pack, PackTimes

log = logging.getLogger(__name__)

METRIC = "n_observations"
# Key of a trial's result: the reason why its pack is neither done nor failed.
CUT_OFF = "cut_off"
# Tune asks for more samples until the searcher says that it is finished.
UNBOUNDED = -1
# A trial's process may die with its node; its pack then resumes in another.
MOST_LOST_TRIALS = 100


class PackSearcher(Searcher):
    """Tune searcher that suggests the next pack and passes results back to the study.

    first: the pack that the study begins with; prepare: called with the number of packs handed out,
    before Tune starts a process for the latest.
    """

    def __init__(
        self, source: PackSource, first: Pack, store: FileStore, prepare: Callable[[int], None]
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._source, self._store, self._prepare = source, store, prepare
        self._first: Pack | None = first
        self._packs: dict[str, Pack] = {}
        self.error: PmlrayError | None = None

    # Ray's declared type lacks the string that means that nothing is left.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyrefly: ignore[bad-override]
        """Return the next pack; None while running packs may bring more, FINISHED at the end."""
        if self.error is not None:
            return self.FINISHED
        try:
            pack, self._first = self._first or self._source.next_pack(), None
        except PmlrayError as error:
            self.error = error
            return self.FINISHED
        if pack is None:
            # Results of running packs may lead to more packs: Tune asks again.
            return None if self._packs else self.FINISHED
        self._packs[trial_id] = pack
        self._prepare(len(self._packs))
        return {"pack": pack}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass a pack's results to the study, read from the store, since a trial that died may have
        left observations. The search ends after a pack that was interrupted."""
        pack = self._packs.pop(trial_id)
        report = result or {}
        if reason := report.get(CUT_OFF):
            self.error = RunError(reason)
            return
        times = PackTimes(
            pack.pack_id,
            pack.round,
            report.get("training_seconds", 0.0),
            report.get("wall_seconds", 0.0),
            report.get("lost_gpu_seconds", 0.0),
        )
        reason = "its Ray Tune trial ended without a result; see the Ray logs"
        self._source.absorb(collect(self._store, pack, times, reason))

    def await_workers(self) -> None:
        """Wait until the workers have left the packs handed out, for LEAVE_SECONDS at most each."""
        for pack in self._packs.values():
            await_workers(self._store, pack)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state that Tune pickles with its configuration, without the live search."""
        return {"_metric": self._metric, "_mode": self._mode}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a restarted search is rebuilt from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""


def tune_packs(
    runner: RayTrainRunner,
    source: PackSource,
    first: Pack,
    store: Path,
    n_at_once: int,
    driver: Lease,
) -> None:
    """Run a study from its first pack to its end, n_at_once packs at a time, or raise the error
    that ended it.

    driver: the lease on the store. An interrupt asks the workers to save their state and waits
    until they have left, for LEAVE_SECONDS per pack at most.
    """
    searcher = PackSearcher(source, first, FileStore(store), runner.prepare)
    # Zero CPUs, since trials and their own workers would otherwise wait for each other. On the head
    # node, since a worker node may vanish.
    trainable = tune.with_resources(_trial(runner), {"node:__internal_head__": 0.001})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=UNBOUNDED,
            max_concurrent_trials=n_at_once,
            # A trial's process only waits for its pack, so it can wait for the next.
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(store / "ray" / ray.__version__),
            verbose=0,
            # Without any of its result files Tune warns about every trial at its end.
            callbacks=[JsonLoggerCallback()],
            failure_config=tune.FailureConfig(max_failures=MOST_LOST_TRIALS),
        ),
    )
    try:
        tuner.fit()
    except KeyboardInterrupt:
        driver.ask_to_stop()
        searcher.await_workers()
        raise
    if searcher.error is not None:
        raise searcher.error


def _trial(runner: PackRunner) -> Callable[[dict[str, Any]], None]:
    def run_pack(config: dict[str, Any]) -> None:
        try:
            result = runner.run(config["pack"])
        except RunError as error:
            # If this were raised, Tune would retry the trial.
            tune.report({METRIC: 0, CUT_OFF: str(error)})
            return
        tune.report(
            {
                METRIC: len(result.observations),
                "training_seconds": result.times.training_seconds,
                "wall_seconds": result.times.wall_seconds,
                "lost_gpu_seconds": result.times.lost_gpu_seconds,
            }
        )

    return run_pack
