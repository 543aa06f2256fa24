"""The process that training runs in: its packages and its signal handlers."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

from pmlray.engine.runtime.thread_barriers import bound_waits
from pmlray.errors import INSTALL_TRAIN, SpecError


@contextmanager
def train_extra() -> Generator[None]:
    """Imports that need the train extra say so when it is missing."""
    # One of them is torch.
    bound_waits(os.environ)
    try:
        yield
    except ImportError as error:
        raise SpecError(
            f"training and decoding need the train extra ({error}); run: {INSTALL_TRAIN}"
        ) from error


@contextmanager
def own_signals() -> Generator[None]:
    """A run's handlers of SIGINT and SIGTERM end with it; whose program it is in has its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
