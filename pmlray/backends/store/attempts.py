"""Attempts at a pack, one small file each: first step, and device-seconds lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pmlray.atomic_files import write_once, write_over
from pmlray.errors import StoreError
from pmlray.rebuild import MALFORMED, rebuild

log = logging.getLogger(__name__)

# So many workers lost at the same step are no coincidence, and the pack has failed.
MOST_WITHOUT_PROGRESS = 5


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a pack, after `step` steps. `unsaved_seconds`: device-seconds since its last
    checkpoint, as last noted; lost if the attempt was interrupted. `over`: it ended by itself, done
    or because it was asked to leave."""

    step: int
    unsaved_seconds: float = 0.0
    over: bool = False


def without_progress(attempts: Sequence[Attempt]) -> int:
    """Return how many attempts in a row, up to the last, were interrupted before any progress."""
    n = 0
    for attempt in reversed(attempts):
        if attempt.over or attempt.step != attempts[-1].step:
            break
        n += 1
    return n


def lost_seconds(attempts: Sequence[Attempt]) -> float:
    """Return the device-seconds of interrupted attempts since their last checkpoints."""
    return sum(attempt.unsaved_seconds for attempt in attempts if not attempt.over)


class AttemptLog:
    """Log of the attempts at one pack."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: tuple[Path, Attempt] | None = None

    def all(self) -> tuple[Attempt, ...]:
        """Return every attempt so far, in order; StoreError when a file is damaged."""
        return tuple(map(_read, sorted(self._folder.glob("attempt-*.json"))))

    def begin(self, step: int) -> None:
        """Record a start after this many steps. OSError when it cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"attempt-{len(self.all()):04d}.json"
        attempt = Attempt(step)
        write_once(path, json.dumps(asdict(attempt)).encode(), patience=60.0)
        self._own = (path, attempt)

    def note(self, unsaved_seconds: float, *, over: bool = False) -> None:
        """Record the device-seconds that would be lost now, or that the attempt ended by itself."""
        if self._own is None:
            return
        path, attempt = self._own
        attempt = replace(attempt, unsaved_seconds=unsaved_seconds, over=over)
        try:
            write_over(path, json.dumps(asdict(attempt)).encode())
        except OSError as error:
            log.warning("could not note what would be lost: %s", error)


def _read(path: Path) -> Attempt:
    try:
        return rebuild(Attempt, json.loads(path.read_bytes()))
    except (*MALFORMED, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error!r}); move it away to go on") from error
