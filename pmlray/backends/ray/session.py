"""Ray session of one command: an existing cluster, or one that starts and ends with it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from pmlray.backends.ray.reach import OTHERWISE, require_cluster
from pmlray.config.cluster_address import LOCAL, ray_address
from pmlray.errors import ClusterAway, RunError

# A Unix socket's path has 107 bytes at most, and below Ray's folder of temporary files the longest
# is pml-12345678/ray/session_2026-11-28_18-59-24_123456_1234567/sockets/plasma_store.1.
SOCKET_BYTES, OWN_BYTES = 107, 86


@contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Connect to the cluster at `address` (or RAY_ADDRESS), else start Ray on this machine.

    SIGTERM and SIGINT, to this process or to its whole group, end the search as an interrupt. The
    end of the context shuts down what was started here. A session inside another one reuses it.
    ClusterAway when no Ray answers at the address, RunError when none starts.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune would otherwise swallow Ctrl-C and end as if it had succeeded.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune's newer output prints its configuration at any verbosity.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray would otherwise start its workers at a lower priority than its own dashboard, and a
    # training thread that waits for a core delays all the others of its step.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # One of Tune's default loggers loads torch into the driver.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import ray

    if ray.is_initialized():
        yield
        return
    address = ray_address(address)
    alone = address == LOCAL
    if not alone:
        require_cluster(address)
    with ExitStack() as session:
        folder = session.enter_context(_alone()) if alone else None
        few = _without_helpers() if alone else nullcontext()
        # Callbacks run in reverse order: Ray shuts down before its folder and environment go.
        session.callback(ray.shutdown)
        with _explained(address), _in_their_own_groups(), few:
            context: Any = ray.init(
                address=address,
                # No dashboard for a Ray that ends with the command: its port is not shown anywhere.
                include_dashboard=False if alone else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        if folder is not None:
            from ray._private.utils import write_ray_address

            write_ray_address(context.address_info["gcs_address"], str(folder / "ray"))
        # Set after ray.init, which replaces the handlers.
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        yield


@contextmanager
def _explained(address: str) -> Generator[None]:
    """Convert the error of a Ray that does not start, or cannot be joined, into a RunError with a
    remedy."""
    from ray.exceptions import RayError

    try:
        yield
    except Exception as error:
        # Ray raises a plain Exception for a node that did not start in time.
        of_ray = type(error) is Exception or isinstance(error, ConnectionError)
        if address != LOCAL and (of_ray or isinstance(error, (RuntimeError, RayError))):
            raise ClusterAway(
                f"the Ray cluster at {address} answers, but cannot be joined ({error}); `ray"
                f" status` there says how it stands. Mend that, or {OTHERWISE}"
            ) from error
        if not of_ray:
            raise
        raise RunError(
            f"Ray did not start on this machine: {error} Most often the machine is too busy, or its"
            " memory or /dev/shm is full: make room, and give the same command again"
        ) from error


@contextmanager
def _in_their_own_groups() -> Generator[None]:
    """Start Ray's processes in process groups of their own within this context.

    A signal to the whole group of a command (by `timeout`, a batch system, or Ctrl-C) then reaches
    the command alone, which ends its workers in order; Ray's head would die at once of SIGTERM.
    Ray's processes still end with the command, since the kernel kills them when it dies.
    """
    from ray._private import services

    before = services.ConsolePopen
    grouped: Any = partial(before, process_group=0)
    services.ConsolePopen = grouped
    try:
        yield
    finally:
        services.ConsolePopen = before


@contextmanager
def _without_helpers() -> Generator[None]:
    """Start a Ray without its log monitor, its autoscaler's monitor and its dashboard's process
    within this context.

    The first sends what workers print to a driver that asks for it, the second adds nodes, and the
    third, which starts where no dashboard is included too, collects statistics that are turned off.
    Here nobody asks and there are none, but each would load Ray anew.
    """
    from ray._private import node, parameter

    head, before = node.Node, parameter.RayParams
    start_dashboard = head.start_api_server
    without: dict[str, Any] = {"include_log_monitor": False, "no_monitor": True}
    fewer: Any = partial(before, **without)
    none: Any = _start_nothing
    parameter.RayParams, head.start_api_server = fewer, none
    try:
        yield
    finally:
        parameter.RayParams, head.start_api_server = before, start_dashboard


def _start_nothing(_node: object, **_options: object) -> None:
    """Take the place of `Node.start_api_server`."""


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _alone() -> Generator[Path]:
    """Make a folder for the temporary files of a Ray that starts, and set its environment.

    All its processes inherit that environment, so that each of them that looks for a cluster, by an
    address or in the file `ray_current_cluster`, finds this one. In Ray's own folder that file
    names the cluster of the last `ray start`, running or not.
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
        # Deleted after success only: after an error its logs are useful.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.environ.pop("RAY_TMPDIR", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
