"""Training of one pack of a sizing on Ray, with live progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from pmlray.api.follower import Follower
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.prepared_search import PreparedSearch
from pmlray.study.search.progress import Progress
from pmlray.types import Pack, PlannedRun

Log = Callable[[str], None]
Connect = Callable[[], None]
# Context manager that shows a search's progress, as `live_progress` does.
ShowProgress = Callable[[], AbstractContextManager[Callable[[Progress], None]]]


def measure(
    search: PreparedSearch,
    store: FileStore,
    driver: Lease,
    runs: Sequence[PlannedRun],
    profile: ClusterProfile,
    predicted: float | None,
    connect: Connect,
    shown: ShowProgress,
) -> None:
    """Train the runs that are not in the store yet, as one pack.

    predicted: gpu_seconds of all of them, for the first line of the progress; None where no run has
    told what they take here."""
    done = {o.run_key for o in store.observations()}
    missing = tuple(run for run in runs if run.run_key not in done)
    if not missing:
        return
    from pmlray.backends.ray.run_packs import run_pack_on_ray

    rounds = [o.round for o in store.observations()] + [f.round for f in store.failures()]
    pack = Pack(1 + max(rounds, default=-1), missing)
    with shown() as announce, Follower(store.folder, announce) as follower:
        follower.stage("starting Ray")
        left = math.inf if predicted is None else predicted
        begun = Progress("law", 0, len(missing), 0, 0.0, left, None, left, missing, len(missing))
        follower(replace(begun, what="training"))
        connect()
        follower.stage("waiting for a worker")
        store.put_times(run_pack_on_ray(search, pack, store, profile, driver).times)
