"""Atomic file writes, safe against dying processes and full disks, and an opener for safe reads."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
# A full disk does not announce free space, so writes are retried.
RETRY_SECONDS = 1.0


def write_once(path: Path, content: bytes, patience: float = 0.0) -> bool:
    """Write a file unless it exists; return False, changing nothing, if it does.

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
    """Replace a file atomically, and a link by a file; on OSError the old one is unchanged."""
    write_all_over({path: content})


def write_all_over(files: Mapping[Path, bytes]) -> None:
    """Replace files, each atomically, once all of them are on the disk; where that has no room for
    all (OSError), the old ones are unchanged."""
    aside: dict[str, Path] = {}
    try:
        for path, content in files.items():
            aside[_write_aside(path, content)] = path
        for temporary, path in aside.items():
            os.replace(temporary, path)
    except OSError:
        for temporary in aside:
            Path(temporary).unlink(missing_ok=True)
        raise


def open_here(path: str, flags: int) -> int:
    """Open a path without following a link or blocking on a pipe, as an `opener` of `open`."""
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
    """Write a temporary file beside `path`, synced to disk, and return its name."""
    temporary = str(path.parent / f".{token_hex(8)}.part")
    # Unlike the temporary files of Python's library, readable by whom the umask lets: a store is
    # shared. Not through a link, since the name must be new.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(temporary)
        raise
    return temporary
