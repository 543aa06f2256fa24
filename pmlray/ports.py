"""Protocols of the study's external services, which `pmlray.backends` implements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pmlray.live_packs import Calibration, LivePack
from pmlray.types import FailedRun, Observation, Pack, PackResult, PackTimes, PlannedRun


class PackRunner(Protocol):
    """Runner that trains a pack and measures every run of it."""

    def run(self, pack: Pack) -> PackResult:
        """Train the pack to its end; failed runs are part of the result and raise no exception."""
        ...


class ObservationStore(Protocol):
    """Authoritative store of observations, named by their run_key, written once, never changed."""

    def put(self, observation: Observation) -> None:
        """Store an observation; writing the same run_key again changes nothing."""
        ...

    def put_failure(self, failure: FailedRun) -> None:
        """Store a failed attempt with its cost and cause."""
        ...

    def put_plan(self, pack: Pack) -> None:
        """Store a pack that is handed out."""
        ...

    def put_times(self, times: PackTimes) -> None:
        """Store a pack's times, which mark the pack as returned."""
        ...

    def unfinished(self) -> tuple[Pack, ...]:
        """Return the packs that were handed out, never returned and lack a result, by round."""
        ...

    def observations(self) -> tuple[Observation, ...]:
        """Return all observations, in the order in which they were chosen."""
        ...

    def failures(self) -> tuple[FailedRun, ...]:
        """Return all failed attempts, in the order in which they were chosen."""
        ...

    def calibration(self) -> Calibration | None:
        """Return the measured cost of the first steps; None where none is stored."""
        ...

    def times(self) -> tuple[PackTimes, ...]:
        """Return the times of every pack, by round."""
        ...


class Tracker(Protocol):
    """Mirror of a search for people to look at; it can be rebuilt from the store."""

    @property
    def uri(self) -> str:
        """Address of the mirror."""
        ...

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations; those already there are left unchanged."""
        ...

    def law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """Record the law's parameters and interval widths, or what a comparison found, after
        `gpu_seconds` of spend."""
        ...

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """Record the progress of the search after `gpu_seconds` of spend."""
        ...

    def live(self, runs: Mapping[str, PlannedRun], packs: Sequence[LivePack]) -> None:
        """Record the progress of the packs in training; `runs`: the known runs, by run_key."""
        ...

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files to the search and close it as FINISHED or FAILED."""
        ...


class PointSource(Protocol):
    """Source of design points for the law that learns from their results (an Optuna study, say)."""

    def ask(
        self, k: int, devices: int = 1, gpu_seconds: float = math.inf, at_least: int = 0
    ) -> tuple[PlannedRun, ...]:
        """Return up to k new runs, jointly chosen, for the next of `devices` devices to train;
        fewer when nothing more is worth measuring or within budget, or when the device has its
        share of what is left. After the first run, and the first `at_least`, runs are added only
        while the pack is predicted to take at most `gpu_seconds`."""
        ...

    def tell(self, observation: Observation) -> None:
        """Record a result."""
        ...

    def fail(self, run_key: str, gpu_seconds: float = 0.0) -> None:
        """Record that a requested run has no result, and its cost, gpu_seconds."""
        ...

    def calibrate(self, seconds_per_token: float, spent: float) -> None:
        """Record the rate measured on a few steps, which is used until runs are measured, and the
        gpu_seconds spent on them."""
        ...


class PackSource(Protocol):
    """Study as a source of packs to run: a search or a comparison."""

    def spread_over(self, n_devices: int) -> None:
        """Set the number of packs that can train at once; 1 unless this is called before
        `next_pack`."""
        ...

    def to_calibrate(self) -> Pack | None:
        """Return a pack of which a few steps are to measure the cost; None where the cost is known,
        or nothing depends on it."""
        ...

    def calibrated(self, found: Calibration) -> None:
        """Record the measured cost of the calibration steps."""
        ...

    def next_pack(self) -> Pack | None:
        """Return the next pack to train; None when there is none, or none until another pack
        ends."""
        ...

    def absorb(self, result: PackResult) -> None:
        """Record the result of a pack."""
        ...
