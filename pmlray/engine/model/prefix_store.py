"""Prefix caches on a node's own disk, memory-mapped, so that its packs share one copy.

An entry holds all records of one sequence, named by a hash of everything that determines its
activations: the prefix's weights, the kept sites, the dtype, the device, the versions, prompts and
tokens. Any change gives another name, so a stale entry is never read. The least recently used
entries are deleted to make room for new ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import CachedRecord, build_prefix_cache, n_positions
from pmlray.memory import Record

log = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**30
LARGEST_SHARE_OF_DISK = 0.25
# Longest wait for the lock: a process that builds an entry for longer has hung.
PATIENCE_SECONDS = 600.0
# The lock is polled, as a blocking file lock has no time limit.
POLL_SECONDS = 0.05
SUFFIX = ".safetensors"


@dataclass
class PrefixCount:
    """Counts of a store: entries built and found, and bytes of those returned."""

    built: int = 0
    found: int = 0
    bytes: int = 0


class PrefixStore:
    """Prefix caches of a node, in a folder of at most `most_bytes`.

    None: a quarter of the disk space that is free or holds entries, and at most 64 GiB.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self.count = PrefixCount()

    def fetch(self, base: BaseModel, records: Sequence[Record]) -> tuple[CachedRecord, ...]:
        """Return the records' cache, mapped from disk, and build it once per node if missing.

        A cache that the disk cannot hold is returned on the base's device.
        """
        path = self._folder / (entry_name(base, records) + SUFFIX)
        try:
            found = self._read(path, records)
            if found is None:
                with self._lock():
                    # Another process may have built it in the meantime.
                    found = self._read(path, records)
                    if found is None:
                        self.count.built += 1
                        cached = build_prefix_cache(base, records)
                        self._write(path, cached)
                        return self._read(path, records, new=True) or cached
            return found
        except OSError as error:
            log.warning("no prefix cache on disk in %s (%s); it is built again", path, error)
            self.count.built += 1
            return build_prefix_cache(base, records)

    def bytes_on_disk(self) -> int:
        """Return the bytes of all entries, finished or not."""
        return sum(size for _, size, _ in self._entries())

    def _read(
        self, path: Path, records: Sequence[Record], new: bool = False
    ) -> tuple[CachedRecord, ...] | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                hidden, adapter_in = file.get_tensor("hidden"), file.get_tensor("adapter_in")
        except SafetensorError as error:
            log.warning("%s is damaged (%s); it is built again", path, error)
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        self.count.bytes += path.stat().st_size
        self.count.found += not new
        cached, start = [], 0
        for record in records:
            end = start + n_positions(record)
            cached.append(
                CachedRecord(
                    hidden[start:end],
                    adapter_in[start:end],
                    torch.tensor(record.supervised_ids),
                    len(record.prompt_ids) - 1,
                    record.end_id is not None,
                )
            )
            start = end
        return tuple(cached)

    def _write(self, path: Path, cached: Sequence[CachedRecord]) -> None:
        tensors = {
            "hidden": torch.cat([record.hidden_TD for record in cached]).cpu(),
            "adapter_in": torch.cat([record.adapter_in_TX for record in cached]).cpu(),
        }
        if not self._make_room(sum(t.nbytes for t in tensors.values())):
            return
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        os.close(handle)
        try:
            save_file(tensors, temporary)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _make_room(self, needed: int) -> bool:
        """Delete the least recently used entries; return False if `needed` bytes can never fit."""
        entries = self._entries()
        held = sum(size for _, size, _ in entries)
        most = self._most_bytes
        if most is None:
            disk = (shutil.disk_usage(self._folder).free + held) * LARGEST_SHARE_OF_DISK
            most = min(MOST_BYTES, int(disk))
        if needed > most:
            return False
        for path, size, _ in sorted(entries, key=lambda entry: entry[2]):
            if held + needed <= most:
                break
            # Processes that have it mapped can read it until they end.
            path.unlink(missing_ok=True)
            held -= size
        return True

    def _entries(self) -> list[tuple[Path, int, float]]:
        found = []
        for path in self._folder.glob("*"):
            if path.suffix in (SUFFIX, ".part"):
                try:
                    stat = path.stat()
                except FileNotFoundError:  # Another pack deleted it.
                    continue
                found.append((path, stat.st_size, stat.st_mtime))
        return found

    @contextmanager
    def _lock(self) -> Generator[None]:
        """Allow one builder per node at a time; a killed process's lock is released at once."""
        _own_folder(self._folder)
        end = time.monotonic() + PATIENCE_SECONDS
        with (self._folder / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(POLL_SECONDS)
            yield


def node_store() -> PrefixStore:
    """Return the store of this node and user, in the folder for temporary files."""
    return PrefixStore(Path(tempfile.gettempdir()) / f"pmlray-prefixes-{os.getuid()}")


def entry_name(base: BaseModel, records: Sequence[Record]) -> str:
    """Return a hash of everything that determines the records' activations."""
    kept = [site.module for site in base.kept_sites]
    determines = {
        "layout": 2,
        "weights": base.prefix_hash,
        # A single one by its name alone, as in entries of before there could be several.
        "kept": kept[0] if len(kept) == 1 else kept or None,
        "dtype": str(base.model.dtype),
        "device": base.device.type,
        "versions": [version(name) for name in ("torch", "transformers")],
        "records": [(record.prompt_ids, record.supervised_ids) for record in records],
    }
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:32]


def _own_folder(folder: Path) -> None:
    """Make the folder; PermissionError where another user could have written to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = folder.lstat()
    if folder.is_symlink() or stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone; remove it")
