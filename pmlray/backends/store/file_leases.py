"""Leases with heartbeats as files of a shared folder: unlike a host's locks, valid on all nodes."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from pmlray.atomic_files import open_here, write_once
from pmlray.backends.store.lease_rules import (
    BEAT_SECONDS,
    FREE,
    STALE_SECONDS,
    STOP,
    UNKNOWN,
    Holder,
    Seen,
    generations,
    in_force,
    may_take,
)
from pmlray.errors import StoreError
from pmlray.rebuild import MALFORMED, rebuild

log = logging.getLogger(__name__)

# Seconds between a holder's checks; those between beats only call `look`.
POLL_SECONDS = 1.0
# Shared storage announces no changes, so a process that waits for a lease polls it this often.
WAIT_SECONDS = 0.2


class LeaseFolder:
    """Folder of all leases of a store."""

    def __init__(self, folder: Path, stale: float = STALE_SECONDS) -> None:
        self._folder, self._stale = folder, stale

    def take(self, name: str, wait: float = 0.0) -> Lease:
        """Take a lease once it is free or its holder is known to be gone.

        wait: seconds. StoreError, naming the holder, when it is still held after them.
        """
        here, end = _this_process(), time.monotonic() + wait
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        while True:
            seen = None
            with suppress(FileExistsError, FileNotFoundError):
                # Either error means that the lease has just changed hands: look again.
                seen = self._seen(name)
                if may_take(seen, here, _start_of, self._stale):
                    return self._make(name, 1 if seen is None else seen.generation + 1, here)
            if seen is not None and seen.holder is not None and time.monotonic() >= end:
                raise StoreError(
                    f"process {seen.holder.pid} of {seen.holder.host} holds {name}, last seen"
                    f" {seen.age:.0f} s ago; wait for it or stop it first (one that died"
                    f" without a word holds it for {self._stale:.0f} s)"
                )
            if time.monotonic() >= end + self._stale:
                raise StoreError(f"{self._folder / name} keeps changing; is its storage in order?")
            time.sleep(WAIT_SECONDS)

    def still_in_force(self, name: str, generation: int) -> bool:
        """Return whether work under this generation of a lease may go on."""
        return in_force(generation, self._there(name))

    def has_seen(self, name: str, generation: int) -> bool:
        """Return whether this folder shows that a lease was taken in this generation: it is held
        and alive, was given back, or a later one has followed."""
        there = self._there(name)
        if max(there, default=0) != generation:
            return max(there, default=0) > generation
        try:
            seen = self._seen(name)
        except FileNotFoundError:
            return False
        return seen is not None and (seen.holder is None or seen.age <= self._stale)

    def is_free(self, name: str) -> bool:
        """Return whether this lease is free, stale, or held by a dead process."""
        try:
            return may_take(self._seen(name), _this_process(), _start_of, self._stale)
        except FileNotFoundError:
            return False

    def await_free(self, names: Iterable[str], until: float) -> bool:
        """Wait until all of these leases are free; return False if they are not by `until`, seconds
        of the monotonic clock."""
        for name in names:
            while not self.is_free(name):
                if time.monotonic() >= until:
                    return False
                time.sleep(WAIT_SECONDS)
        return True

    def _there(self, name: str) -> dict[int, frozenset[str]]:
        try:
            return generations(os.listdir(self._folder / name))
        except FileNotFoundError:
            return {}

    def _seen(self, name: str) -> Seen | None:
        there = self._there(name)
        if not there:
            return None
        last = max(there)
        # With a STOP file alone, the lease was given back while the folder was listed.
        if FREE in there[last] or "" not in there[last]:
            return Seen(last, None, 0.0)
        path = self._folder / name / str(last)
        try:
            # Opening a file makes a network file system ask its server for the file's age.
            with open(path, "rb", opener=open_here) as file:
                content, beaten = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"the lease {path} cannot be read: {error}; move it away") from error
        return Seen(last, _holder_from(content), self._now() - beaten)

    def _now(self) -> float:
        """Return the time of the file system's clock, which stamps the beats."""
        clock = self._folder / "clock"
        clock.touch()
        return clock.stat().st_mtime

    def _make(self, name: str, generation: int, holder: Holder) -> Lease:
        path = self._folder / name / str(generation)
        if not write_once(path, json.dumps(asdict(holder)).encode()):
            raise FileExistsError(path)
        for old in self._there(name):
            if old < generation:
                for kind in ("", f".{FREE}", f".{STOP}"):
                    path.with_name(f"{old}{kind}").unlink(missing_ok=True)
        return Lease(self, name, generation, path)


class Lease:
    """Lease that this process holds."""

    def __init__(self, folder: LeaseFolder, name: str, generation: int, path: Path) -> None:
        self._folder, self.name, self.generation, self._path = folder, name, generation, path

    def beat(self) -> bool:
        """Renew the lease; return False when another process has taken it."""
        with suppress(FileNotFoundError):
            os.utime(self._path)
        return self._folder.still_in_force(self.name, self.generation) or self._stopping.exists()

    def ask_to_stop(self) -> None:
        """Ask all work under this lease to save its state and end."""
        self._stopping.touch()

    def give_back(self) -> None:
        """Give the lease back, so that it is free; needs no space on the disk."""
        with suppress(FileNotFoundError):
            os.rename(self._path, self._path.with_name(f"{self._path.name}.{FREE}"))

    @property
    def _stopping(self) -> Path:
        return self._path.with_name(f"{self._path.name}.{STOP}")


@contextmanager
def beating(
    leases: Sequence[Lease],
    lost: Callable[[], None],
    look: Callable[[], None] = lambda: None,
    every: float = BEAT_SECONDS,
) -> Generator[None]:
    """Keep leases alive from a thread, and give them back at the end.

    lost: called once, from that thread, when another process has taken one of them. look: called
    every second.
    """
    over = threading.Event()

    def beat() -> None:
        next_beat = time.monotonic() + every
        while not over.wait(min(POLL_SECONDS, every)):
            try:
                look()
                if time.monotonic() < next_beat:
                    continue
                next_beat = time.monotonic() + every
                if not all(lease.beat() for lease in leases):
                    lost()
                    return
            except OSError as error:
                # The file system is unreachable; the lease becomes stale if that lasts.
                log.warning("no heartbeat on a lease: %s", error)

    thread = threading.Thread(target=beat, name="lease-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10 * POLL_SECONDS)
        for lease in leases:
            lease.give_back()


def _holder_from(content: bytes) -> Holder:
    """Read the holder of a lease from its file; UNKNOWN where it is damaged."""
    try:
        holder = rebuild(Holder, json.loads(content))
        # Refuses half of a surrogate pair, which could not be printed.
        f"{holder.host}{holder.place}{holder.started}".encode()
    except (*MALFORMED, RecursionError):
        return UNKNOWN
    return holder


def _this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _place(), pid, _start_of(pid) or "")


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Return the start of a process of this machine, in ticks; None when there is none, or it is a
    zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
