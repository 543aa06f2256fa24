"""Packs on the connected Ray: a study's, whose first worker starts while Tune is still loading, or
one alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pmlray.backends.file_leases import Lease
from pmlray.backends.file_store import FileStore
from pmlray.backends.ray_train import RayTrainRunner, await_workers, packs_at_once
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared import PreparedSearch
from pmlray.ports import PackSource
from pmlray.types import Pack, PackResult


def run_packs_on_ray(
    search: PreparedSearch, source: PackSource, store: Path, profile: ClusterProfile, driver: Lease
) -> None:
    """Run a study to its end; raises the error that ended it, if one did.

    driver: the lease on the store. An interrupt is raised once the workers have left, or were given
    their time to.
    """
    n_at_once = packs_at_once(profile)
    runner = RayTrainRunner(search, store, profile, driver.generation, n_at_once)
    source.spread_over(n_at_once)
    if (draft := source.to_calibrate()) is not None:
        source.calibrated(runner.calibrate(draft))
    first = source.next_pack()
    if first is not None:
        # Its worker takes longer to start than all that follows here.
        runner.prepare(1)
        from pmlray.backends.ray_tune import tune_packs

        tune_packs(runner, source, first, store, n_at_once, driver)
    runner.close()


def run_pack_on_ray(
    search: PreparedSearch, pack: Pack, store: FileStore, profile: ClusterProfile, driver: Lease
) -> PackResult:
    """Train one pack, without Tune.

    driver: the lease on the store. An interrupt is raised once the worker has left, or was given
    its time to.
    """
    runner = RayTrainRunner(search, store.folder, profile, driver.generation)
    # Called in the main thread, Ray Train would take Ctrl-C for itself and end without a word.
    aside = ThreadPoolExecutor(1)
    try:
        result = aside.submit(runner.run, pack).result()
    except KeyboardInterrupt:
        driver.ask_to_stop()
        await_workers(store, pack)
        raise
    finally:
        aside.shutdown(wait=False)
    runner.close()
    return result
