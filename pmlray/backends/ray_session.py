"""The Ray of one command: a cluster that is there, or one that starts and ends with it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` (or RAY_ADDRESS), else start Ray on this machine.

    SIGTERM and SIGINT end the search as an interrupt. Leaving shuts down what was started here.
    Inside another session it is that one.
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
    ray.init(
        address=address,
        # Of a Ray that ends with the search nobody is told the dashboard's port.
        include_dashboard=False if address == "local" else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # Ray replaces the handlers in its init.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        ray.shutdown()
