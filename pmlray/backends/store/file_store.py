"""Record of truth in a shared folder: one immutable JSON file per observation.

Layout: `observations/<run_key>.json`, `failures/<run_key>-<n>.json`, `plans/<pack_id>.json` when a
pack is handed out and `packs/<pack_id>.json` once it is finished, `adapters/<run_key>/`, `leases/`,
`checkpoints/<pack_id>/`, `load/` (see node_load.py), `live/` (see live_packs.py),
`calibration.json`, and files derived from these.
"""

from __future__ import annotations

import _thread
import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, TypeVar

from pmlray.atomic_files import open_here, write_once
from pmlray.backends.store.file_leases import Lease, LeaseFolder, beating
from pmlray.backends.store.usable import require_usable
from pmlray.config.store_folder import local_folder
from pmlray.errors import StoreError
from pmlray.live_packs import Calibration, calibration_of
from pmlray.rebuild import MALFORMED, rebuild, taken_apart
from pmlray.types import DesignPoint, FailedRun, Observation, Pack, PackTimes, PlannedRun, Room

log = logging.getLogger(__name__)

T = TypeVar("T", Observation, FailedRun, PackTimes, Pack)

DRIVER = "driver"
# Longest wait for space on a full disk before a measurement is lost.
FULL_DISK_SECONDS = 600.0


class FileStore:
    """ObservationStore in a folder that is visible to every worker of a search.

    SpecError where the folder is a URL, StoreError where it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = local_folder(folder, "the store")
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
        """Folder of the trained adapters, one sub-folder per run_key."""
        return self.folder / "adapters"

    def checkpoints(self, pack_id: str) -> Path:
        """Return the folder of a pack's checkpoints."""
        return self.folder / "checkpoints" / pack_id

    def put(self, observation: Observation) -> None:
        """Store an observation; writing the same run_key again changes nothing."""
        _write_once(self._observations / f"{observation.run_key}.json", observation.to_json())

    def put_failure(self, failure: FailedRun) -> None:
        """Store a failed attempt, one per run and round: where a pack resumed from before the
        failure, the first of the round is kept."""
        earlier = self.failures_of(failure.run_key)
        if all(other.round != failure.round for other in earlier):
            path = self._failures / f"{failure.run_key}-{len(earlier)}.json"
            _write_once(path, taken_apart(failure))

    def put_times(self, times: PackTimes) -> None:
        """Store the times of a pack, which then counts as finished."""
        _write_once(self._packs / f"{times.pack_id}.json", asdict(times))

    def put_plan(self, pack: Pack) -> None:
        """Store the runs of a pack, so that an interrupted pack resumes with the same ones: packed
        with others, its runs would be rounded differently."""
        _write_once(self._plans / f"{pack.pack_id}.json", taken_apart(pack))

    def plans(self) -> tuple[Pack, ...]:
        """Return all packs that were ever handed out, by round."""
        packs = _read_all(self._plans.glob("*.json"), _pack_from)
        return tuple(sorted(packs, key=lambda pack: pack.round))

    def unfinished(self) -> tuple[Pack, ...]:
        """Return the packs that were handed out, did not finish, and lack a result, by round."""
        back = {path.name for path in self._packs.glob("*.json")}
        cut_off = [path for path in self._plans.glob("*.json") if path.name not in back]
        found = (
            pack
            for pack in _read_all(cut_off, _pack_from)
            if not all(self.has_ended(run.run_key, pack.round) for run in pack.runs)
        )
        return tuple(sorted(found, key=lambda pack: pack.round))

    def observations(self) -> tuple[Observation, ...]:
        """Return all observations, in the order in which they were chosen."""
        found = _read_all(self._observations.glob("*.json"), Observation.from_json)
        return tuple(sorted(found, key=lambda o: (o.round, o.place, o.run_key)))

    def observation(self, run_key: str) -> Observation | None:
        """Return the observation of one run, if it is there."""
        path = self._observations / f"{run_key}.json"
        return next(_read_all([path], Observation.from_json), None)

    def has_observation(self, run_key: str) -> bool:
        """Return whether a run has been measured."""
        return (self._observations / f"{run_key}.json").exists()

    def failures_of(self, run_key: str) -> tuple[FailedRun, ...]:
        """Return the failed attempts of one run, in the order in which they were written."""
        paths = (self._failures / f"{run_key}-{attempt}.json" for attempt in count())
        return tuple(_read_all(takewhile(Path.exists, paths), _failure_from))

    def has_ended(self, run_key: str, round_: int) -> bool:
        """Return whether a run has an observation, or failed in this round."""
        if self.has_observation(run_key):
            return True
        return any(failure.round == round_ for failure in self.failures_of(run_key))

    def failures(self) -> tuple[FailedRun, ...]:
        """Return all failed attempts, in the order in which they were chosen."""
        found = _read_all(self._failures.glob("*.json"), _failure_from)
        return tuple(sorted(found, key=lambda f: (f.round, f.place, f.run_key)))

    def calibration(self) -> Calibration | None:
        """Return the cost of the first steps, where that was stored."""
        return calibration_of(self.folder)

    def times(self) -> tuple[PackTimes, ...]:
        """Return the times of every pack, by round."""
        found = _read_all(self._packs.glob("*.json"), partial(rebuild, PackTimes))
        return tuple(sorted(found, key=lambda times: times.round))

    @contextmanager
    def driver_lock(self) -> Generator[Lease]:
        """Hold the store's lease for one driver, on any node.

        The lease of a killed driver is free once its heartbeats are stale, at once on the same
        machine. A driver that lost its lease while it did not respond is interrupted. StoreError
        where nobody can work on this folder as a store.
        """
        require_usable(self.folder)
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
    """Write a file atomically unless it exists; StoreError when it cannot be written."""
    try:
        write_once(path, json.dumps(content).encode(), FULL_DISK_SECONDS)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _read_all(paths: Iterable[Path], build: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yield the content of files, untrusted: anybody with access to the store may write them."""
    for path in sorted(paths):
        try:
            with open(path, encoding="utf-8", opener=open_here) as file:
                text = file.read()
            stored = json.loads(text)
            if "\\ud" in text:
                # Refuses half of a surrogate pair, which no report could hold.
                json.dumps(stored, ensure_ascii=False).encode()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged ({error}); move it away to measure again") from (
                error
            )
        try:
            found = build(stored)
        except MALFORMED as error:
            raise StoreError(
                f"{path} is damaged, or of another version of pmlray ({error!r}): use the version"
                " that wrote it, or choose another --store"
            ) from error
        named = found.pack_id if isinstance(found, (Pack, PackTimes)) else found.run_key
        if named not in (path.stem, path.stem.rpartition("-")[0]):
            raise StoreError(f"{path} is of {named}, which is not what its name tells")
        yield found


def _failure_from(row: dict[str, Any]) -> FailedRun:
    # Until November 2026 `left_out` was stored as `handed_on`, and such stores are still read.
    row = {("left_out" if name == "handed_on" else name): value for name, value in row.items()}
    return rebuild(FailedRun, {**row, "point": rebuild(DesignPoint, row["point"])})


def _pack_from(row: dict[str, Any]) -> Pack:
    runs = (
        rebuild(PlannedRun, {**run, "point": rebuild(DesignPoint, run["point"])})
        for run in row["runs"]
    )
    room = row.get("room")
    room = None if room is None else rebuild(Room, room)
    # Fields that were added later are missing in older files.
    later = {name: row[name] for name in ("gpu_seconds", "calibrates") if name in row}
    return rebuild(Pack, {"round": row["round"], "runs": tuple(runs), "room": room} | later)
