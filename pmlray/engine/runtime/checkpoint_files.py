"""Checkpoints as files whose names tell the step and a digest of the content: pure rules.

A file cut short, or damaged in any other way, has not the content that its name tells, and the one
before it counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# One may turn out to be cut short.
KEPT = 2
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.safetensors")


def digest_of(content: bytes) -> str:
    """A digest of a checkpoint's bytes, against damage and not against forgery."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def file_name(step: int, content: bytes) -> str:
    """The name of a checkpoint after so many steps."""
    return f"step-{step:08d}-{digest_of(content)}.safetensors"


def is_whole(name: str, content: bytes) -> bool:
    """Whether a file has the content that its name tells."""
    found = _NAME.fullmatch(name)
    return found is not None and found[2] == digest_of(content)


def newest_first(names: Iterable[str]) -> tuple[str, ...]:
    """The checkpoints among the names of a folder's files, the one of most steps first."""
    return tuple(sorted((n for n in names if _NAME.fullmatch(n)), key=step_of, reverse=True))


def step_of(name: str) -> int:
    """The steps of a checkpoint by its name; ValueError where it is none's."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no checkpoint's name")
    return int(found[1])


def superseded(names: Iterable[str]) -> tuple[str, ...]:
    """The checkpoints that newer ones make dispensable."""
    return newest_first(names)[KEPT:]
