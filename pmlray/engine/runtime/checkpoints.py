"""Checkpoints of a pack in training: safetensors files, of which the newest intact one is used.

A file's name holds the step and a digest of the content: a truncated or otherwise damaged file does
not match its name, and the previous one is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pmlray.atomic_files import write_once
from pmlray.engine.runtime.checkpoint_header import CHECKPOINT_VERSION, told_version
from pmlray.engine.runtime.device_clock import DeviceClock, paid_seconds
from pmlray.engine.runtime.pack_state import PackState
from pmlray.errors import RunError, StoreRefused
from pmlray.types import PlannedRun

log = logging.getLogger(__name__)

# More than one, as the newest may be truncated.
KEPT = 2
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.safetensors")


class Restorable(Protocol):
    """A fresh pack that can be restored."""

    def set_state(self, state: PackState) -> None:
        """Restore a state of the same members."""
        ...


class Resumable(Protocol):
    """A pack between two steps that can be saved.

    A restored pack continues bit for bit as the saved one would have, on the same kind of device.
    """

    active: list[int]
    clock: DeviceClock

    def get_state(self) -> PackState:
        """Return all that later steps depend on, on the host; waits for the device."""
        ...


class AskedToLeave(RunError):
    """Training was asked to stop early; its state was saved."""


class Checkpoints:
    """Folder of a pack's checkpoints, and rule when to take one.

    every: seconds between two. leave: returns True when the process was asked to end; training then
    ends with a checkpoint and AskedToLeave. sharded: True where runs train one by one on a sharded
    base; the packed loop cannot read such a state, nor the other way round.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[PlannedRun],
        every: float,
        leave: Callable[[], bool],
        *,
        sharded: bool = False,
    ) -> None:
        self._folder, self._every, self._leave = folder, every, leave
        kind = [CHECKPOINT_VERSION, "sharded"] if sharded else [CHECKPOINT_VERSION]
        self._identity = hashlib.sha256(
            json.dumps([*kind, *(run.run_key for run in runs)]).encode()
        ).hexdigest()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._kept_at: float | None = None
        self._paid_then = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def unsaved_seconds(self) -> float:
        """Wall seconds since the last checkpoint or the start of training."""
        return 0.0 if self._kept_at is None else time.monotonic() - self._kept_at

    @property
    def unsaved_paid_seconds(self) -> float:
        """Charged seconds since the last checkpoint or the start, by `paid_seconds`."""
        return 0.0 if self._kept_at is None else paid_seconds(self._device) - self._paid_then

    @property
    def step(self) -> int:
        """Number of steps at the newest checkpoint; 0 where there is none."""
        names = newest_first(path.name for path in self._folder.iterdir())
        return step_of(names[0]) if names else 0

    def resume(self, pack: Restorable) -> int:
        """Restore a fresh pack from the newest intact checkpoint; return its number of steps.

        StoreRefused where it is of a newer version of pmlray; it stays.
        """
        step, state = self._newest()
        if state is not None:
            pack.set_state(state)
            log.info("training goes on after step %d", step)
        self._note_kept()
        return step

    def after(self, pack: Resumable, step: int, anyone_finished: bool) -> None:
        """Save the pack after a step if that is due; raise AskedToLeave if asked to end.

        A checkpoint is also due when a member has finished, so that it never trains again.
        """
        leave = self._leave()
        if not pack.active or not (leave or anyone_finished or self.unsaved_seconds >= self._every):
            return
        self._keep(step, pack.get_state())
        self._note_kept()
        pack.clock.restart()
        if leave:
            raise AskedToLeave(f"asked to leave after step {step}; starting again goes on there")

    def _note_kept(self) -> None:
        self._kept_at, self._paid_then = time.monotonic(), paid_seconds(self._device)

    def _keep(self, step: int, state: PackState) -> None:
        facts = json.dumps(dict(state.facts))
        version = str(CHECKPOINT_VERSION)
        metadata = {
            "identity": self._identity, "step": str(step), "facts": facts, "version": version
        }  # fmt: skip
        content = save(dict(state.tensors), metadata)
        try:
            write_once(self._folder / file_name(step, content), content)
        except OSError as error:
            # Training continues without a checkpoint.
            log.warning("no checkpoint after step %d: %s", step, error)
            return
        for name in superseded(path.name for path in self._folder.iterdir()):
            (self._folder / name).unlink(missing_ok=True)

    def _newest(self) -> tuple[int, PackState | None]:
        for name in newest_first(path.name for path in self._folder.iterdir()):
            content = (self._folder / name).read_bytes()
            if is_whole(name, content):
                try:
                    return step_of(name), self._read(name, content)
                except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
                    log.warning("%s is no checkpoint of this pack: %s", name, error)
            else:
                log.warning("%s was cut short or damaged; the one before it is used", name)
            (self._folder / name).unlink(missing_ok=True)
        return 0, None

    def _read(self, name: str, content: bytes) -> PackState:
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length]
        if told_version(header) > CHECKPOINT_VERSION:
            # Removed, it would cost that version its work.
            raise StoreRefused(
                f"{self._folder / name} is of a newer version of pmlray: continue this search with"
                " that version, or choose another --store"
            )
        tensors = load(content)
        metadata = json.loads(header)["__metadata__"]
        if metadata["identity"] != self._identity:
            raise ValueError("it is of other runs, or of another version of pmlray")
        return PackState(tensors, json.loads(metadata["facts"]))


def digest_of(content: bytes) -> str:
    """Return a digest of a checkpoint's bytes, against damage and not against forgery."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def file_name(step: int, content: bytes) -> str:
    """Return the name of a checkpoint after so many steps."""
    return f"step-{step:08d}-{digest_of(content)}.safetensors"


def is_whole(name: str, content: bytes) -> bool:
    """Return whether a file's content matches the digest in its name."""
    found = _NAME.fullmatch(name)
    return found is not None and found[2] == digest_of(content)


def newest_first(names: Iterable[str]) -> tuple[str, ...]:
    """Return the checkpoints among file names, the one of most steps first."""
    return tuple(sorted((n for n in names if _NAME.fullmatch(n)), key=step_of, reverse=True))


def step_of(name: str) -> int:
    """Return the steps in a checkpoint's name; ValueError where it is not a checkpoint's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no checkpoint's name")
    return int(found[1])


def superseded(names: Iterable[str]) -> tuple[str, ...]:
    """Return the checkpoints older than the newest `KEPT`, which can be deleted."""
    return newest_first(names)[KEPT:]
