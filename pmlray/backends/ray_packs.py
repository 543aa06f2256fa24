"""A study's packs on the connected Ray: the first worker starts while Tune is still loading."""

from __future__ import annotations

from pathlib import Path

from pmlray.backends.file_leases import Lease
from pmlray.backends.ray_train import RayTrainRunner, packs_at_once
from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.prepared import PreparedSearch
from pmlray.ports import PackSource


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
    first = source.next_pack()
    if first is not None:
        # Its worker takes longer to start than all that follows here.
        runner.prepare(1)
        from pmlray.backends.ray_tune import tune_packs

        tune_packs(runner, source, first, store, n_at_once, driver)
    runner.close()
