"""Handling of a pack by its worker: under leases, from its last checkpoint, until it is done or the
worker is asked to leave."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Event

from pmlray.backends.ray.pack_task import PackWork, fail_missing, missing_runs
from pmlray.backends.store.attempts import (
    MOST_WITHOUT_PROGRESS,
    AttemptLog,
    lost_seconds,
    without_progress,
)
from pmlray.backends.store.file_leases import beating
from pmlray.backends.store.file_store import DRIVER, FileStore
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.errors import ModelError, PmlrayError, StoreError
from pmlray.types import Pack

log = logging.getLogger(__name__)

# A live worker that has lost its leases leaves after its step; those of a dead one are stale after
# half a minute without heartbeats.
LEASE_WAIT_SECONDS = 120.0
# Looks, one a second, per note of the unsaved time; each note is a write to the store.
LOOKS_A_NOTE = 5


def run_pack(work: PackWork, measure: Callable[[FileStore, Checkpoints], float]) -> float | None:
    """Measure the runs of a pack that have no result yet; return the wall seconds inside optimiser
    steps, None where the worker was asked to leave.

    measure: trains the pack, from its checkpoints. Errors of the pack itself are stored as
    failures; any other error is raised, for another attempt.
    """
    store, pack = FileStore(Path(work.store)), work.pack
    folder = store.checkpoints(pack.pack_id)
    attempts, leave = AttemptLog(folder), Event()
    checkpoints = Checkpoints(
        folder, pack.runs, work.checkpoint_seconds, leave.is_set, sharded=work.sharded
    )
    if not missing_runs(store, pack):
        return 0.0
    with ExitStack() as held:
        leases = []
        for run in sorted(pack.runs, key=lambda run: run.run_key):
            leases.append(store.leases.take(run.run_key, LEASE_WAIT_SECONDS))
            held.callback(leases[-1].give_back)

        looks = count()

        def look() -> None:
            if not store.leases.still_in_force(DRIVER, work.driver):
                leave.set()
            if next(looks) % LOOKS_A_NOTE == 0:
                attempts.note(checkpoints.unsaved_paid_seconds * work.devices)

        # Another worker, presumed dead, may have finished the pack in the meantime.
        if not missing_runs(store, pack):
            return 0.0
        if without_progress(attempts.all()) >= MOST_WITHOUT_PROGRESS:
            reason = (
                f"its worker was lost {MOST_WITHOUT_PROGRESS} times after step {checkpoints.step},"
                " without getting further; the Ray logs say why"
            )
            _fail_missing(store, pack, attempts, reason, infrastructure=True)
            return 0.0
        attempts.begin(checkpoints.step)
        with beating(leases, leave.set, look):
            seconds = _try(store, pack, attempts, lambda: measure(store, checkpoints))
        attempts.note(0.0, over=True)
    return seconds


def _try(
    store: FileStore, pack: Pack, attempts: AttemptLog, measure: Callable[[], float]
) -> float | None:
    try:
        return measure()
    except AskedToLeave as asked:
        log.info("%s: %s", pack.pack_id, asked)
        return None
    except StoreError:
        raise
    except ModelError as error:
        # No fault of the runs, which are open again once the base is mended.
        _fail_missing(store, pack, attempts, str(error), infrastructure=True, bad_base=True)
        return 0.0
    except PmlrayError as error:
        # Another attempt would fail alike. A failed calibration is no failure of its runs.
        _fail_missing(store, pack, attempts, str(error), infrastructure=pack.calibrates)
        return 0.0


def _fail_missing(
    store: FileStore,
    pack: Pack,
    attempts: AttemptLog,
    reason: str,
    *,
    infrastructure: bool,
    bad_base: bool = False,
) -> None:
    log.error("%s failed: %s", pack.pack_id, reason)
    lost = lost_seconds(attempts.all())
    fail_missing(store, pack, reason, lost, infrastructure=infrastructure, bad_base=bad_base)
