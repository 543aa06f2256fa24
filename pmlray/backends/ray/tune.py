"""Ray Tune drives a search: one trial is one pack, chosen when the trial is made.

Tune's own experiment state is not used to resume: the store is the truth, and a new Tuner on the
same store goes on. A trial holds no CPU; it sits on the head node while its Ray Train worker
trains.
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
# Of a trial whose pack is neither done nor failed: why.
CUT_OFF = "cut_off"
# Tune asks for more samples until the searcher says that it is finished.
UNBOUNDED = -1
# The process that waits for a pack may die with its node; the pack goes on from where it was.
MOST_LOST_TRIALS = 100


class PackSearcher(Searcher):
    """Tune's searcher: suggests the next pack and hands results back to the study.

    first: the pack that the study begins with; prepare: told how many packs are out before Tune
    starts a process for the latest.
    """

    def __init__(
        self, source: PackSource, first: Pack, store: FileStore, prepare: Callable[[int], None]
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._source, self._store, self._prepare = source, store, prepare
        self._first: Pack | None = first
        self._packs: dict[str, Pack] = {}
        self.error: PmlrayError | None = None

    # Ray's declaration leaves out the text that says that nothing is left.
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyrefly: ignore[bad-override]
        """The next pack; Tune waits while packs run, and ends when nothing is left."""
        if self.error is not None:
            return self.FINISHED
        try:
            pack, self._first = self._first or self._source.next_pack(), None
        except PmlrayError as error:
            self.error = error
            return self.FINISHED
        if pack is None:
            # What is still running may leave something to do: Tune asks again.
            return None if self._packs else self.FINISHED
        self._packs[trial_id] = pack
        self._prepare(len(self._packs))
        return {"pack": pack}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Give the search what came of the pack. A trial that died may have left observations: what
        counts is what is in the store. The search ends after a pack that was cut off."""
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
        """Wait until nobody works on the packs that are out, for LEAVE_SECONDS at most."""
        for pack in self._packs.values():
            await_workers(self._store, pack)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its configuration; a live search is no part of it."""
        return {"_metric": self._metric, "_mode": self._mode}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a restarted search is rebuilt from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def tune_packs(
    runner: RayTrainRunner,
    source: PackSource,
    first: Pack,
    store: Path,
    n_at_once: int,
    driver: Lease,
) -> None:
    """Run a study from its first pack on to its end, n_at_once packs at a time; raises the error
    that ended it, if any.

    driver: the lease on the store. An interrupt asks the workers to keep what they have and waits
    until they have left, for LEAVE_SECONDS at most.
    """
    searcher = PackSearcher(source, first, FileStore(store), runner.prepare)
    # Zero CPUs, or trials and their own workers would wait for each other; and not on a worker
    # node that may vanish.
    trainable = tune.with_resources(_trial(runner), {"node:__internal_head__": 0.001})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=UNBOUNDED,
            max_concurrent_trials=n_at_once,
            # The process that waits for one pack can wait for the next.
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
            # Raised, it would be taken for a trial to try again.
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
