"""Watch of a study's wait for workers: it warns, and ends the wait where none can start."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ray.exceptions import GetTimeoutError, RayError

from pmlray.backends.ray.held_resources import can_grow
from pmlray.backends.ray.niceness import REMEDY, describe_niceness
from pmlray.backends.ray.train import RayTrainRunner
from pmlray.errors import RunError

log = logging.getLogger(__name__)

# A worker's process starts seconds after its devices are free; where an autoscaler has to find a
# machine first, and that machine has to pull its image, after many minutes.
START_SECONDS, GROWN_SECONDS = 300.0, 3600.0
# Errors of reading Ray's internal tables, whose form is not guaranteed.
UNTOLD = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, OSError)
SAY_SECONDS, POLL_SECONDS = 30.0, 2.0


def await_actors(runner: RayTrainRunner) -> None:
    """Wait until the cluster's head has started the actor of the workers; RunError when there is
    none within START_SECONDS. Warn where the cluster starts processes at a low priority."""
    try:
        runner.waited(START_SECONDS)
    except GetTimeoutError as error:
        raise RunError(
            f"the head of the Ray cluster has started no actor within {START_SECONDS:.0f} s; `ray"
            " status` and the logs of its raylet say why. Mend that, or choose another cluster"
            " (--address, RAY_ADDRESS; `--address local` starts one here), and give the same"
            " command again: what is finished is kept"
        ) from error
    # A cluster that is too busy to report its niceness is no error.
    with suppress(RayError):
        # No warning where this process itself runs under `nice`: that is intended.
        if (niceness := runner.niceness()) > max(0, os.nice(0)):
            log.warning("%s; %s", describe_niceness(niceness), REMEDY)


@contextmanager
def watching(runner: RayTrainRunner) -> Generator[None]:
    """Watch for workers within this context: while there is none, log the shortage every
    SAY_SECONDS; after START_SECONDS, or GROWN_SECONDS where the cluster can grow, end the runs that
    wait."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(runner, over), name="waits", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(runner: RayTrainRunner, over: threading.Event) -> None:
    said = waited = 0.0
    while not over.wait(POLL_SECONDS):
        try:
            waited = runner.waited()
            if waited < min(SAY_SECONDS, START_SECONDS):
                said = 0.0
                continue
            grows = can_grow()
            if waited >= (GROWN_SECONDS if grows else START_SECONDS):
                runner.give_up(_no_worker(waited, runner.describe_shortage(), grows))
                return
            if waited >= said + SAY_SECONDS:
                said = waited
                held = runner.describe_shortage()
                log.warning("no worker yet, after %.0f s. %s", waited, held)
        except RayError:
            # If the actor is gone, its runs raise that error themselves.
            continue
        except UNTOLD as error:
            log.debug("what holds the devices cannot be told: %r", error)
            if waited >= GROWN_SECONDS:
                runner.give_up(_no_worker(waited, "What holds the devices is not known.", False))
                return


def _no_worker(waited: float, shortage: str, grows: bool) -> str:
    node = "" if grows else ", and nothing adds nodes to this cluster"
    return (
        f"no worker could start within {waited:.0f} s{node}. {shortage} End what holds them (`ray"
        " job stop`, or its process), add a node, or ask for less (cpus_per_pack, gpus_per_pack,"
        " workers_per_pack of the profile), and give the same command again: what is finished is"
        " kept"
    )
