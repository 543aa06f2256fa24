"""Pack as a driver hands it to a worker, and its runs that have no result yet."""

from __future__ import annotations

from dataclasses import dataclass

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.types import FailedRun, Pack, PlannedRun


@dataclass(frozen=True)
class PackWork:
    """Input of a worker that measures a pack.

    `store`: folder that is visible to every node. `driver`: generation of the lease of the driver
    that requests the pack; the work ends once that driver has lost it. `checkpoint_seconds`:
    between two checkpoints. `devices`: factor from one process's charge to the pack's cost: its
    GPUs, or on a CPU its processes. `sharded`: True if several workers share its base.
    """

    search: PreparedSearch
    pack: Pack
    store: str
    cpus: int
    driver: int
    checkpoint_seconds: float
    devices: int
    sharded: bool = False


def missing_runs(store: FileStore, pack: Pack) -> list[tuple[int, PlannedRun]]:
    """Return the runs of a pack, with their places, that have neither an observation nor, in this
    round, a failure."""
    return [
        (place, run)
        for place, run in enumerate(pack.runs)
        if not store.has_ended(run.run_key, pack.round)
    ]


def spent_before(store: FileStore, pack: Pack) -> float:
    """Return the gpu_seconds of a pack's ended runs, before it resumes after a fault."""
    spent = 0.0
    for run in pack.runs:
        if (found := store.observation(run.run_key)) is not None:
            spent += found.gpu_seconds if found.round == pack.round else 0.0
            continue
        failures = store.failures_of(run.run_key)
        spent += sum(f.gpu_seconds for f in failures if f.round == pack.round)
    return spent


def fail_missing(
    store: FileStore,
    pack: Pack,
    reason: str,
    gpu_seconds: float,
    *,
    infrastructure: bool,
    bad_base: bool = False,
) -> None:
    """Store the runs of a pack that have no result as failed; they share `gpu_seconds`."""
    missing = missing_runs(store, pack)
    for place, run in missing:
        cost = gpu_seconds / len(missing)
        store.put_failure(
            FailedRun(
                run.run_key,
                run.point,
                pack.round,
                place,
                reason,
                cost,
                infrastructure,
                phase=run.phase,
                bad_base=bad_base,
            )
        )
