"""Ordered journal of a tracker's entries on disk, so that a late or new mirror gets all of them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pmlray.atomic_files import write_once, write_over
from pmlray.errors import StoreError
from pmlray.rebuild import MALFORMED, NAME

log = logging.getLogger(__name__)

FULL_DISK_SECONDS = 600.0
STORE_ID_DIGITS = 12
STORE_ID = re.compile(rf"[0-9a-f]{{{STORE_ID_DIGITS}}}")


def entry_name(number: int) -> str:
    """Return the file name of an entry; entries are numbered from 1."""
    return f"{number:08d}.json"


def due(names: Iterable[str], sent: int) -> tuple[int, ...]:
    """Return the numbers of the entries after the first `sent`, in order.

    names: of the files in the journal's folder. The numbers stop at a gap: an entry behind one was
    written without knowing the missing one.
    """
    there = {int(name[:8]) for name in names if name[:8].isdigit() and name[8:] == ".json"}
    found = []
    while sent + 1 in there:
        sent += 1
        found.append(sent)
    return tuple(found)


class MirrorJournal:
    """Journal of a store's entries, with the number of them that each mirror has received.

    It is written by one process at a time, the store's driver.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / "mirror"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sent_file = self._folder / "sent.json"
        self._last = max(due(self._names(), 0), default=0)

    def store_id(self) -> str:
        """Return the id of the store, by which mirrors tell it from others of the same study; it is
        made at the first call, and moves with the folder."""
        path = self._folder / "store_id"
        write_once(path, uuid.uuid4().hex[:STORE_ID_DIGITS].encode())
        found = path.read_bytes().decode(errors="replace")
        if STORE_ID.fullmatch(found) is None:
            raise StoreError(f"{path} is damaged: remove it, and mirrors get this store once more")
        return found

    def earlier_identity(self, uri: str) -> str | None:
        """Return the identity of the mirror that took entries at an address; None if there was
        none."""
        return self._all_sent().get(_key(uri), (None, 0))[0]

    def experiment(self) -> str | None:
        """Return the name of the experiment that the study was last started with; None where its
        journal is older than that name."""
        named = [e.get("experiment") for _, e in self.entries() if e["kind"] == "start"]
        return next((name for name in reversed(named) if name is not None), None)

    def add(self, kind: str, **content: Any) -> None:
        """Write an entry; StoreError when it cannot be written."""
        path = self._folder / entry_name(self._last + 1)
        entry = {"kind": kind, "time_ms": int(time.time() * 1000), **content}
        try:
            write_once(path, json.dumps(entry).encode(), FULL_DISK_SECONDS)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from error
        self._last += 1

    def entries(self, sent: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the entries after the first `sent`, with their numbers, in order."""
        # The folder is not listed, since it holds thousands of files after a long search.
        number = sent
        while (path := self._folder / entry_name(number + 1)).exists():
            number += 1
            try:
                entry = json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise StoreError(f"{path} is damaged ({error})") from error
            if not _is_entry(entry):
                raise StoreError(f"{path} is no entry of a journal")
            yield number, entry

    def run_keys(self) -> set[str]:
        """Return the run_keys of all observations in the journal."""
        return {key for _, entry in self.entries() for key in entry.get("run_keys", ())}

    def is_open(self) -> bool:
        """Return whether the last `start` has no `finish` after it."""
        last = ""
        for _, entry in self.entries():
            if entry["kind"] in ("start", "finish"):
                last = entry["kind"]
        return last == "start"

    def waiting(self, uri: str) -> int:
        """Return the number of entries that a mirror has not received yet."""
        return self._last - self._all_sent().get(_key(uri), ("", 0))[1]

    def sent(self, uri: str, identity: str) -> int:
        """Return the number of entries that a mirror has received; 0 if another mirror is now at
        its address."""
        of, number = self._all_sent().get(_key(uri), ("", 0))
        return number if of == identity else 0

    def mark_sent(self, uri: str, identity: str, number: int) -> None:
        """Record that a mirror has received all entries up to this one."""
        sent = self._all_sent() | {_key(uri): (identity, number)}
        write_over(self._sent_file, json.dumps(sent).encode())

    def _all_sent(self) -> dict[str, tuple[str, int]]:
        try:
            stored = json.loads(self._sent_file.read_bytes())
            return {str(key): (str(of), int(number)) for key, (of, number) in stored.items()}
        except FileNotFoundError:
            return {}
        except (*MALFORMED, RecursionError) as error:
            # Sending all of it again is safe: mirrors ignore what they already have.
            log.warning("%s is damaged (%r): all is sent again", self._sent_file, error)
            return {}

    def _names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]


def _is_entry(found: Any) -> bool:
    """Return whether an entry has the fields of its kind."""
    if not isinstance(found, dict):
        return False

    def texts(name: str) -> bool:
        value = found.get(name)
        return isinstance(value, list) and all(isinstance(text, str) for text in value)

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    match found.get("kind"):
        case "start":
            return isinstance(found.get("experiment", ""), str)
        case "observe":
            return texts("run_keys") and all(map(NAME.fullmatch, found["run_keys"]))
        case "law" | "progress":
            metrics = found.get("metrics")
            numbers = [found.get("gpu_seconds"), found.get("time_ms")]
            if not isinstance(metrics, dict):
                return False
            return all(map(number, [*numbers, *metrics.values()]))
        case "live":
            runs = found.get("runs")
            return (
                number(found.get("time_ms")) and isinstance(runs, list) and all(map(_is_live, runs))
            )
        case "finish":
            return texts("artifacts") and isinstance(found.get("status"), str)
        case _:
            return False


def _is_live(row: Any) -> bool:
    """Return whether a row describes a run in training."""
    if not isinstance(row, dict):
        return False
    tags, steps, loss = row.get("tags"), row.get("steps"), row.get("loss")
    if not isinstance(tags, dict):
        return False
    return (
        all(isinstance(word, str) for word in (row.get("name"), row.get("run_key"), *tags.values()))
        and type(steps) is int
        and isinstance(loss, float)
        and math.isfinite(loss)
    )


def _key(uri: str) -> str:
    # Hashed, since an address may hold a password.
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
