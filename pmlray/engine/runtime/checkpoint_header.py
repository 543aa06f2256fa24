"""Version of pmlray's checkpoints, and that of a file, read without torch."""

from __future__ import annotations

import json
from pathlib import Path

from pmlray.atomic_files import open_here

# Part of every checkpoint's identity; increase it when code changes what a checkpoint must hold.
CHECKPOINT_VERSION = 5
# Longest header of safetensors, bytes.
MOST_HEADER = 100_000_000


def version_of(path: Path) -> int:
    """Return the version of a checkpoint; 0 where it tells none, as until version 5, or where the
    file is damaged or gone."""
    try:
        with open(path, "rb", opener=open_here) as file:
            length = int.from_bytes(file.read(8), "little")
            return told_version(file.read(length)) if length <= MOST_HEADER else 0
    except OSError:
        return 0


def told_version(header: bytes) -> int:
    """Return the version that the header of a checkpoint tells; 0 where it tells none."""
    try:
        return int(json.loads(header)["__metadata__"]["version"])
    except (LookupError, TypeError, ValueError, RecursionError):
        return 0
