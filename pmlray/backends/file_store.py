"""The record of truth on a shared folder: one immutable JSON file an observation.

Layout: `observations/<run_key>.json`, `failures/<run_key>-<n>.json`, `plans/<pack_id>.json` as a
pack is handed out and `packs/<pack_id>.json` once it is back, `adapters/<run_key>/`, `leases/`,
`checkpoints/<pack_id>/`, and whatever is derived from them beside.
"""

from __future__ import annotations

import _thread
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from pmlray.atomic_files import write_once
from pmlray.backends.file_leases import Lease, LeaseFolder, beating
from pmlray.errors import StoreError
from pmlray.types import DesignPoint, FailedRun, Observation, Pack, PackTimes, PlannedRun

log = logging.getLogger(__name__)

DRIVER = "driver"
# A measurement waits so long for space on a full disk before it is lost.
FULL_DISK_SECONDS = 600.0


class FileStore:
    """An ObservationStore in a folder that every worker of a search sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._observations = folder / "observations"
        self._failures = folder / "failures"
        self._packs, self._plans = folder / "packs", folder / "plans"
        self.leases = LeaseFolder(folder / "leases")
        parts = (self._observations, self._failures, self._packs, self._plans, self.adapters)
        try:
            for part in (*parts, folder / "leases"):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the store {folder}: {error}; choose --store") from error

    @property
    def adapters(self) -> Path:
        """Folder of the trained adapters, one sub-folder a run_key."""
        return self.folder / "adapters"

    def checkpoints(self, pack_id: str) -> Path:
        """Folder of a pack's checkpoints."""
        return self.folder / "checkpoints" / pack_id

    def put(self, observation: Observation) -> None:
        """Keep an observation; writing the same run_key again changes nothing."""
        _write_once(self._observations / f"{observation.run_key}.json", observation.to_json())

    def put_failure(self, failure: FailedRun) -> None:
        """Keep a failed attempt beside those of the same run in other rounds; within one, where a
        pack went on from before the failure, the first counts."""
        earlier = self.failures_of(failure.run_key)
        if all(other.round != failure.round for other in earlier):
            path = self._failures / f"{failure.run_key}-{len(earlier)}.json"
            _write_once(path, asdict(failure))

    def put_times(self, times: PackTimes) -> None:
        """Keep where a pack's wall time went."""
        _write_once(self._packs / f"{times.pack_id}.json", asdict(times))

    def put_plan(self, pack: Pack) -> None:
        """Keep which runs train together: a pack that a fault cut off goes on as it was, for in
        other company its runs would round otherwise."""
        _write_once(self._plans / f"{pack.pack_id}.json", asdict(pack))

    def plans(self) -> tuple[Pack, ...]:
        """All packs that were ever handed out, by round."""
        packs = map(_pack_from, _read_all(self._plans.glob("*.json")))
        return tuple(sorted(packs, key=lambda pack: pack.round))

    def unfinished(self) -> tuple[Pack, ...]:
        """The packs that were handed out, never came back, and lack a result, by round."""
        back = {path.name for path in self._packs.glob("*.json")}
        cut_off = [path for path in self._plans.glob("*.json") if path.name not in back]
        found = (
            pack
            for pack in map(_pack_from, _read_all(cut_off))
            if not all(self.has_ended(run.run_key, pack.round) for run in pack.runs)
        )
        return tuple(sorted(found, key=lambda pack: pack.round))

    def observations(self) -> tuple[Observation, ...]:
        """All observations, in the order in which they were chosen."""
        found = map(self._observation_from, _read_all(self._observations.glob("*.json")))
        return tuple(sorted(found, key=lambda o: (o.round, o.place, o.run_key)))

    def observation(self, run_key: str) -> Observation | None:
        """The observation of one run, if it is there."""
        rows = _read_all([self._observations / f"{run_key}.json"])
        return next(map(self._observation_from, rows), None)

    def failures_of(self, run_key: str) -> tuple[FailedRun, ...]:
        """The failed attempts of one run, in the order in which they were written."""
        paths = (self._failures / f"{run_key}-{attempt}.json" for attempt in count())
        return tuple(map(_failure_from, _read_all(takewhile(Path.exists, paths))))

    def has_ended(self, run_key: str, round_: int) -> bool:
        """Whether a run has an observation, or failed in this round."""
        if (self._observations / f"{run_key}.json").exists():
            return True
        return any(failure.round == round_ for failure in self.failures_of(run_key))

    def failures(self) -> tuple[FailedRun, ...]:
        """All failed attempts, in the order in which they were chosen."""
        found = map(_failure_from, _read_all(self._failures.glob("*.json")))
        return tuple(sorted(found, key=lambda f: (f.round, f.place, f.run_key)))

    def times(self) -> tuple[PackTimes, ...]:
        """The times of every pack, by round."""
        found = [PackTimes(**row) for row in _read_all(self._packs.glob("*.json"))]
        return tuple(sorted(found, key=lambda times: times.round))

    def _observation_from(self, row: dict[str, Any]) -> Observation:
        try:
            return Observation.from_json(row)
        except (KeyError, TypeError) as error:
            raise StoreError(
                f"{self._observations} holds a file of another version: {error!r}"
            ) from error

    @contextmanager
    def driver_lock(self) -> Iterator[Lease]:
        """Hold the store for one driver, on whatever node; that of a killed one is free once its
        heartbeats stop, at once on the same machine.

        A driver that was taken for dead, and is not, is interrupted.
        """
        try:
            lease = self.leases.take(DRIVER)
        except StoreError as error:
            raise StoreError(f"another search is running on {self.folder}: {error}") from error

        def lost() -> None:
            log.error("another driver took %s over while this one did not answer", self.folder)
            _thread.interrupt_main()

        with beating([lease], lost):
            yield lease


def _write_once(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either whole or absent, and never replaced."""
    try:
        write_once(path, json.dumps(content).encode(), FULL_DISK_SECONDS)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _read_all(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in sorted(paths):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); move it away to measure again") from (
                error
            )


def _failure_from(row: dict[str, Any]) -> FailedRun:
    return FailedRun(**{**row, "point": DesignPoint(**row["point"])})


def _pack_from(row: dict[str, Any]) -> Pack:
    runs = (PlannedRun(**{**run, "point": DesignPoint(**run["point"])}) for run in row["runs"])
    return Pack(row["round"], tuple(runs))
