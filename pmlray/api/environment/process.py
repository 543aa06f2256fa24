"""Environment of training in this process: the train extra and signal handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.errors import INSTALL_TRAIN, SpecError


@contextmanager
def train_extra() -> Generator[None]:
    """Turn an ImportError of the train extra into a SpecError that names the install command."""
    # Must precede the import of torch, whose OpenMP reads it once.
    bound_waits(os.environ)
    try:
        yield
    except ImportError as error:
        raise SpecError(
            f"training and decoding need the train extra ({error}); run: {INSTALL_TRAIN}"
        ) from error


@contextmanager
def own_signals() -> Generator[None]:
    """Restore the caller's handlers of SIGINT and SIGTERM when the block ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
