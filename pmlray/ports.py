"""Protocols of what the study needs from outside; `pmlray.backends` implements them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pmlray.live_packs import Calibration, LivePack
from pmlray.types import FailedRun, Observation, Pack, PackResult, PackTimes, PlannedRun


class PackRunner(Protocol):
    """Trains a pack and measures every run of it."""

    def run(self, pack: Pack) -> PackResult:
        """Train the pack to its end; failed runs are part of the result, never an exception."""
        ...


class ObservationStore(Protocol):
    """The record of truth: observations named by their run_key, written once, never changed."""

    def put(self, observation: Observation) -> None:
        """Keep an observation; writing the same run_key again changes nothing."""
        ...

    def put_failure(self, failure: FailedRun) -> None:
        """Keep a failed attempt, so that its cost and cause are not lost."""
        ...

    def put_plan(self, pack: Pack) -> None:
        """Keep a pack that is handed out."""
        ...

    def put_times(self, times: PackTimes) -> None:
        """Keep where a pack's wall time went; with them it is back."""
        ...

    def unfinished(self) -> tuple[Pack, ...]:
        """The packs that were handed out, never came back, and lack a result, by round."""
        ...

    def observations(self) -> tuple[Observation, ...]:
        """All observations, in the order in which they were chosen."""
        ...

    def failures(self) -> tuple[FailedRun, ...]:
        """All failed attempts, in the order in which they were chosen."""
        ...

    def calibration(self) -> Calibration | None:
        """Return the cost of the first steps, where that was stored."""
        ...

    def times(self) -> tuple[PackTimes, ...]:
        """The times of every pack, by round."""
        ...


class Tracker(Protocol):
    """Mirrors a search where people look at it; it can be rebuilt from the store."""

    @property
    def uri(self) -> str:
        """Address of the mirror."""
        ...

    def observe(self, observations: Iterable[Observation]) -> None:
        """Mirror observations; one that is already there is left alone."""
        ...

    def law(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """Record the law's parameters and interval widths at this spend."""
        ...

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """Record where the search stands at this spend."""
        ...

    def live(self, runs: Mapping[str, PlannedRun], packs: Sequence[LivePack]) -> None:
        """Record how far the runs of packs are that train; `runs` are those known, by run_key."""
        ...

    def finish(self, artifacts: Sequence[Path], status: str) -> None:
        """Attach files to the search and close it as FINISHED or FAILED."""
        ...


class PointSource(Protocol):
    """Chooses design points for the law and learns from their results (an Optuna study, say)."""

    def ask(
        self, k: int, devices: int = 1, gpu_seconds: float = math.inf, at_least: int = 0
    ) -> tuple[PlannedRun, ...]:
        """Up to k new runs, jointly chosen, for the next of so many devices to train; fewer when
        nothing more is worth or within budget, or the device has then its share of what is left.
        From the first, and those `at_least`, on they are predicted to take no more gpu_seconds."""
        ...

    def tell(self, observation: Observation) -> None:
        """Learn a result."""
        ...

    def fail(self, run_key: str, gpu_seconds: float = 0.0) -> None:
        """Learn that a run that was asked for has no result, and what it cost."""
        ...

    def calibrate(self, seconds_per_token: float, spent: float) -> None:
        """Learn the rate of a few steps, which counts until runs are measured, and what they cost,
        gpu_seconds."""
        ...


class PackSource(Protocol):
    """A study as whoever runs its packs sees it (a search, a comparison)."""

    def spread_over(self, n_devices: int) -> None:
        """So many packs can train at once; one, unless this is called before `next_pack`."""
        ...

    def to_calibrate(self) -> Pack | None:
        """A pack of which a few steps are to tell what they cost; None where that is known, or
        nothing is planned by it."""
        ...

    def calibrated(self, found: Calibration) -> None:
        """Learn what they cost."""
        ...

    def next_pack(self) -> Pack | None:
        """The next pack to train; None when there is none, or none before another is done."""
        ...

    def absorb(self, result: PackResult) -> None:
        """Take in what came of a pack."""
        ...
