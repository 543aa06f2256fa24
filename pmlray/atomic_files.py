"""Files that are whole or absent, also when a process dies or a disk is full, and their opener."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
# Nothing tells when a full disk has space again.
RETRY_SECONDS = 1.0


def write_once(path: Path, content: bytes, patience: float = 0.0) -> bool:
    """Write a file that nobody has written yet; False, and nothing changes, when it is there.

    patience: seconds to wait for space on a full disk. OSError when it cannot be written.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return _write_once(path, content)
        except OSError as error:
            if error.errno not in FULL or time.monotonic() >= end:
                raise
            log.warning("no space for %s; trying again for %.0f s", path, end - time.monotonic())
            time.sleep(RETRY_SECONDS)


def write_over(path: Path, content: bytes) -> None:
    """Replace a file as a whole, or leave the old one as it is. OSError when it cannot be."""
    temporary = _write_aside(path, content)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def open_here(path: str, flags: int) -> int:
    """An `opener` that follows no link, which might lead anywhere, and waits for no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _write_once(path: Path, content: bytes) -> bool:
    temporary = _write_aside(path, content)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)


def _write_aside(path: Path, content: bytes) -> str:
    """A whole file beside where it will stand, on the disk itself."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(temporary)
        raise
    return temporary
