"""The Ray of one command: a cluster that is there, or one that starts and ends with it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pmlray.errors import RunError

# A Unix socket's path has 107 bytes at most, and below Ray's folder of temporary files the longest
# is pml-12345678/ray/session_2026-11-28_18-59-24_123456_1234567/sockets/plasma_store.1.
SOCKET_BYTES, OWN_BYTES = 107, 86


@contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Connect to the cluster at `address` (or RAY_ADDRESS), else start Ray on this machine.

    SIGTERM and SIGINT end the search as an interrupt. Leaving shuts down what was started here.
    Inside another session it is that one. RunError when no Ray answers, or starts.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune would swallow Ctrl-C and end as if all had gone well.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Its other output prints its configuration whatever its verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray would start its workers at a lower priority than its own dashboard, and a training thread
    # that waits for a core holds up all the others of its step.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # One of its default loggers loads torch into the driver.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    alone = address == "local"
    with ExitStack() as session:
        folder = session.enter_context(_alone()) if alone else None
        # Last in, first out: Ray is gone before what its processes were told is.
        session.callback(ray.shutdown)
        with _explained(address):
            context: Any = ray.init(
                address=address,
                # No dashboard for a Ray that ends with the command: its port is shown nowhere.
                include_dashboard=False if alone else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        if folder is not None:
            from ray._private.utils import write_ray_address

            write_ray_address(context.address_info["gcs_address"], str(folder / "ray"))
        # Ray replaces the handlers in its init.
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        yield


@contextmanager
def _explained(address: str) -> Generator[None]:
    """Turn the reason why Ray does not start, or does not answer, into a RunError with its cure."""
    try:
        yield
    except ConnectionError as error:
        raise RunError(
            f"no Ray cluster answers at {address} ({error}); give the address of one that runs"
            " (--address, RAY_ADDRESS), or `--address local` to start Ray here"
        ) from error
    except Exception as error:
        # Ray has no class of its own for a node that did not come up in time.
        if type(error) is not Exception:
            raise
        raise RunError(
            f"Ray did not start on this machine: {error} Most often the machine is too busy, or its"
            " memory or /dev/shm is full: make room, and give the same command again"
        ) from error


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _alone() -> Generator[Path]:
    """A new folder for the temporary files of a Ray that starts, all of whose processes inherit the
    environment that there is meanwhile: whichever of them looks for a cluster, by an address or in
    the file `ray_current_cluster`, finds this one.

    In Ray's own folder that file names the cluster of the last `ray start`, living or not.
    """
    from ray._common.utils import get_default_system_temp_dir

    usual = get_default_system_temp_dir()
    place = usual if len(os.fsencode(usual)) <= SOCKET_BYTES - OWN_BYTES else "/tmp"
    os.makedirs(place, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="pml-", dir=place)
    names = ("RAY_TMPDIR", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["RAY_TMPDIR"] = folder
    try:
        yield Path(folder)
        # What it holds is of use where something went wrong, and that is not here.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.environ.pop("RAY_TMPDIR", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
