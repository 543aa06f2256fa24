"""Packs on the connected Ray: all packs of a study, by Ray Tune, or a single pack."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pmlray.backends.ray.train import (
    CLOSE_SECONDS,
    HURRIED_SECONDS,
    RayTrainRunner,
    await_workers,
    packs_at_once,
)
from pmlray.backends.ray.waits import await_actors, watching
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared_search import PreparedSearch
from pmlray.ports import PackSource
from pmlray.types import Pack, PackResult


def run_packs_on_ray(
    search: PreparedSearch, source: PackSource, store: Path, profile: ClusterProfile, driver: Lease
) -> None:
    """Run a study to its end, or raise the error that ended it.

    driver: the lease on the store. An interrupt is raised once the workers have left, or their time
    to leave is over. Their resources are free at the end. RunError when no worker can start.
    """
    n_at_once = packs_at_once(profile)
    with _closed_after(
        RayTrainRunner(search, store, profile, driver.generation, n_at_once)
    ) as runner:
        source.spread_over(n_at_once)
        draft = source.to_calibrate()
        first = source.next_pack() if draft is None else None
        if draft is None and first is None:
            return
        # Started first, since a worker takes longer to start than importing Tune below.
        runner.prepare(1)
        from pmlray.backends.ray.tune import tune_packs

        await_actors(runner)
        with watching(runner):
            if draft is not None:
                source.calibrated(runner.calibrate(draft))
                first = source.next_pack()
            if first is not None:
                tune_packs(runner, source, first, store, n_at_once, driver)


def run_pack_on_ray(
    search: PreparedSearch, pack: Pack, store: FileStore, profile: ClusterProfile, driver: Lease
) -> PackResult:
    """Train one pack, without Tune.

    driver: the lease on the store. An interrupt is raised once the worker has left, or its time to
    leave is over. Its resources are free at the end. RunError when no worker can start.
    """
    with _closed_after(RayTrainRunner(search, store.folder, profile, driver.generation)) as runner:
        # In the main thread, Ray Train would handle Ctrl-C itself and end without a message.
        aside = ThreadPoolExecutor(1)
        try:
            await_actors(runner)
            with watching(runner):
                return aside.submit(runner.run, pack).result()
        except KeyboardInterrupt:
            driver.ask_to_stop()
            await_workers(store, pack)
            raise
        finally:
            aside.shutdown(wait=False)


@contextmanager
def _closed_after(runner: RayTrainRunner) -> Generator[RayTrainRunner]:
    """Yield the runner, and close it at the end, with a shorter wait after an error."""
    seconds = HURRIED_SECONDS
    try:
        yield runner
        seconds = CLOSE_SECONDS
    finally:
        runner.close(seconds)
