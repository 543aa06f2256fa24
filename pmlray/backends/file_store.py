"""The record of truth on a shared folder: one immutable JSON file an observation.

Layout: `observations/<run_key>.json`, `failures/<run_key>-<n>.json`, `packs/<pack_id>.json`,
`adapters/<run_key>/`, and whatever is derived from them beside.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pmlray.errors import StoreError
from pmlray.types import DesignPoint, FailedRun, Observation, PackTimes


class FileStore:
    """An ObservationStore in a folder that every worker of a search sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._observations = folder / "observations"
        self._failures = folder / "failures"
        self._packs = folder / "packs"
        try:
            for part in (self._observations, self._failures, self._packs, self.adapters):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the store {folder}: {error}; choose --store") from error

    @property
    def adapters(self) -> Path:
        """Folder of the trained adapters, one sub-folder a run_key."""
        return self.folder / "adapters"

    def put(self, observation: Observation) -> None:
        """Keep an observation; writing the same run_key again changes nothing."""
        _write_once(self._observations / f"{observation.run_key}.json", observation.to_json())

    def put_failure(self, failure: FailedRun) -> None:
        """Keep a failed attempt beside earlier ones of the same run."""
        attempt = len(list(self._failures.glob(f"{failure.run_key}-*.json")))
        _write_once(self._failures / f"{failure.run_key}-{attempt}.json", asdict(failure))

    def put_times(self, times: PackTimes) -> None:
        """Keep where a pack's wall time went."""
        _write_once(self._packs / f"{times.pack_id}.json", asdict(times))

    def observations(self) -> tuple[Observation, ...]:
        """All observations, in the order in which they were chosen."""
        return self._observed(sorted(self._observations.glob("*.json")))

    def observations_of(self, run_keys: Iterable[str]) -> tuple[Observation, ...]:
        """Those of these runs that are there, without a look at any other."""
        paths = (self._observations / f"{key}.json" for key in run_keys)
        return self._observed(path for path in paths if path.is_file())

    def failures_of(self, run_keys: Iterable[str]) -> tuple[FailedRun, ...]:
        """The failed attempts of these runs."""
        paths = [path for key in run_keys for path in self._failures.glob(f"{key}-*.json")]
        return _failed(paths)

    def _observed(self, paths: Iterable[Path]) -> tuple[Observation, ...]:
        try:
            found = [Observation.from_json(row) for row in _read_all(paths)]
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"{self._observations} holds a file of another version: {error!r}"
            ) from error
        return tuple(sorted(found, key=lambda o: (o.round, o.place, o.run_key)))

    def failures(self) -> tuple[FailedRun, ...]:
        """All failed attempts, in the order in which they were chosen."""
        return _failed(sorted(self._failures.glob("*.json")))

    def times(self) -> tuple[PackTimes, ...]:
        """The times of every pack, by round."""
        found = [PackTimes(**row) for row in _read_all(sorted(self._packs.glob("*.json")))]
        return tuple(sorted(found, key=lambda times: times.round))

    @contextmanager
    def driver_lock(self) -> Iterator[None]:
        """Hold the store for one driver; the lock of a killed one is free at once."""
        with (self.folder / "driver.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    f"another search is running on {self.folder}; wait for it or stop it first"
                ) from error
            yield


def _write_once(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either whole or absent, and never replaced."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    finally:
        os.unlink(temporary)


def _failed(paths: Iterable[Path]) -> tuple[FailedRun, ...]:
    found = [FailedRun(**{**row, "point": DesignPoint(**row["point"])}) for row in _read_all(paths)]
    return tuple(sorted(found, key=lambda f: (f.round, f.place, f.run_key)))


def _read_all(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); move it away to measure again") from (
                error
            )
