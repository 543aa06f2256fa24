"""Live progress of a study while its packs train, between their results."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pmlray.errors import StoreError
from pmlray.live_packs import LivePack, forget_all_live, fresh_packs
from pmlray.study.search.live import live_metrics, with_live
from pmlray.study.search.progress import Progress, progress_metrics
from pmlray.types import PlannedRun

log = logging.getLogger(__name__)

Announce = Callable[[Progress], None]
SECONDS_BETWEEN_LOOKS = 1.0
# Least seconds between two live entries in the tracker, and least growth factor of the steps.
TRACKED_SECONDS, TRACKED_GROWTH = 15.0, 1.05
BETWEEN_PACKS = "between two packs"


class LiveTracker(Protocol):
    """Tracker interface for the live progress of runs."""

    def progress(self, metrics: Mapping[str, float], gpu_seconds: float) -> None:
        """Record the study's progress metrics at this total of gpu_seconds."""
        ...

    def live(self, runs: Mapping[str, PlannedRun], packs: tuple[LivePack, ...]) -> None:
        """Record the live progress of packs; `runs` are the known running runs, by run_key."""
        ...


class Follower:
    """Callback that announces a study's latest progress every second, with its packs' live reports.

    `stage` sets the activity that is shown while no pack reports, from the first call on.
    """

    def __init__(self, store: Path, announce: Announce, tracker: LiveTracker | None = None) -> None:
        self._store, self._announce, self._tracker = store, announce, tracker
        self._lock, self._over = threading.Lock(), threading.Event()
        self._last: Progress | None = None
        self._stage, self._since = "", time.monotonic()
        self._tracked: tuple[float, float] = (-TRACKED_SECONDS, 0.0)
        self._thread = threading.Thread(target=self._go_on, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        forget_all_live(self._store)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def __call__(self, progress: Progress) -> None:
        """Announce the progress of the study, and repeat it until the next call."""
        with self._lock:
            self._last = progress
        self._show()

    def stage(self, words: str) -> None:
        """Set the activity to show while no pack reports; "" for none in particular."""
        with self._lock:
            self._stage, self._since = words, time.monotonic()
        self._show()

    def _go_on(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._last is None:
                return
            packs = fresh_packs(self._store)
            shown = with_live(self._last, packs)
            if packs:
                self._stage, self._since = BETWEEN_PACKS, time.monotonic()
            elif self._stage:
                waited = time.monotonic() - self._since
                shown = replace(shown, stage=self._stage, stage_seconds=waited)
            self._announce(shown)
            try:
                self._track(shown, packs)
            except StoreError as error:
                # Only a warning: the study itself reports a full disk.
                log.warning("how runs get on is not tracked: %s", error)

    def _track(self, shown: Progress, packs: tuple[LivePack, ...]) -> None:
        at, steps = self._tracked
        taken = sum(pack.steps for pack in packs)
        further = taken >= TRACKED_GROWTH * steps or taken < steps
        now = time.monotonic()
        if self._tracker is None or not taken or not further or now - at < TRACKED_SECONDS:
            return
        self._tracked = (now, taken)
        metrics = progress_metrics(shown) | live_metrics(packs)
        self._tracker.progress(metrics, shown.gpu_seconds_spent)
        self._tracker.live({run.run_key: run for run in shown.running}, packs)
