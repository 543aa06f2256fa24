"""Worker's look for the store of its driver, before it trains anything that nobody would find."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.store.file_leases import LeaseFolder
from pmlray.backends.store.file_store import DRIVER
from pmlray.errors import StoreRefused

# For so long, a node may not see a file that another has written to a shared folder.
SHARED_FOLDER_SECONDS = 65.0
POLL_SECONDS = 1.0


def train_in_store(plan: WorkerPlan, workers: Any, train: Callable[[], None]) -> None:
    """Call `train` where this node sees the driver's store; end the search, with the reason, where
    it does not, or where the store is refused while training.

    workers: the actor that hands out packs.
    """
    try:
        await_driver(Path(plan.store), plan.driver, SHARED_FOLDER_SECONDS)
        train()
    except StoreRefused as error:
        ray.get(workers.refuse.remote(str(error)))


def await_driver(store: Path, driver: int, seconds: float) -> None:
    """Return once a store shows the lease of this generation that its driver holds, or a later one.

    A folder of the same name on this node alone has none, or an old one. StoreRefused where there
    is none within `seconds`; nothing is made in the folder.
    """
    leases, until = LeaseFolder(store / "leases"), time.monotonic() + seconds
    while not leases.has_seen(DRIVER, driver):
        if time.monotonic() >= until:
            raise StoreRefused(
                f"the node {socket.gethostname()}, which is to train, does not see the store"
                f" {store}: the lease of the search's driver is not there. Choose a folder that"
                " every node sees under the same path (--store, PMLRAY_STORE, or storage of the"
                " profile), on NFS, EFS, Filestore or Lustre, and give the same command again"
            )
        time.sleep(POLL_SECONDS)
