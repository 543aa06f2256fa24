"""Live progress of packs, as files of their store.

`live/<pack_id>.json`: progress of a pack. Its worker rewrites the file every few seconds; drivers
and watchers read all files in the folder. It is deleted once the pack has ended.
`calibration.json`: cost of a search's first steps.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pmlray.atomic_files import open_here, write_once, write_over
from pmlray.rebuild import MALFORMED, rebuild, taken_apart
from pmlray.types import DesignPoint

log = logging.getLogger(__name__)

CALIBRATION = "calibration.json"
# Age at which a training pack's report is stale: its worker is lost, and the next one will report
# again. A pack that is still loading its base, maybe over a slow network, reports less often.
STALE_SECONDS, STALE_LOADING_SECONDS = 120.0, 3600.0


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Run in training: `steps` of its `train_steps` optimiser steps are done; `loss` is that of its
    last batch, nats per token (NaN before the first)."""

    run_key: str
    steps: int
    train_steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class LivePack:
    """Progress of a pack.

    `stage`: current activity, in words. `time`: of this report, seconds since 1970. `steps` and
    `train_steps`: adapter-steps taken, and in total. `n_ended`: how many of its `n_runs` runs have
    ended. `gpu_seconds`: spent so far, `open_gpu_seconds` of them by runs that have not ended;
    `gpu_seconds_left`: estimate for the rest at the pace so far, and `seconds_left` the same in
    wall seconds, both None until there is a pace. `runs`: those in training.
    """

    pack_id: str
    stage: str
    time: float
    n_runs: int
    n_ended: int = 0
    steps: float = 0.0
    train_steps: float = 0.0
    gpu_seconds: float = 0.0
    open_gpu_seconds: float = 0.0
    gpu_seconds_left: float | None = None
    seconds_left: float | None = None
    runs: tuple[LiveRun, ...] = ()

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the runs in training, nats per token; None before there is one."""
        losses = [run.loss for run in self.runs if math.isfinite(run.loss)]
        return fmean(losses) if losses else None

    def is_stale(self, now: float) -> bool:
        """Return whether the report is too old to describe the state at `now`, seconds since
        1970."""
        most = STALE_SECONDS if self.train_steps else STALE_LOADING_SECONDS
        return not now - self.time < most


@dataclass(frozen=True, slots=True)
class Calibration:
    """Cost of a few steps, measured before a search chooses its first runs.

    `steps`: points, each with its number of timed steps; `gpu_seconds`: cost of the timed steps;
    `spent_gpu_seconds`: cost including the steps before them.
    """

    steps: tuple[tuple[DesignPoint, int], ...]
    gpu_seconds: float
    spent_gpu_seconds: float


def put_calibration(store: Path, calibration: Calibration) -> None:
    """Store the cost of the first steps, unless the store has a calibration already. OSError where
    it cannot be written."""
    write_once(store / CALIBRATION, json.dumps(taken_apart(calibration)).encode(), patience=60.0)


def calibration_of(store: Path) -> Calibration | None:
    """Return the calibration of a store; None where it has none that can be read."""
    try:
        with open(store / CALIBRATION, encoding="utf-8", opener=open_here) as file:
            row = json.load(file)
        steps = tuple((rebuild(DesignPoint, point), int(n)) for point, n in row["steps"])
        return rebuild(Calibration, {**row, "steps": steps})
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, *MALFORMED) as error:
        log.warning("%s is left out: %r", store / CALIBRATION, error)
        return None


def live_file(store: Path, pack_id: str) -> Path:
    """Return the path of a pack's progress in a store."""
    return store / "live" / f"{pack_id}.json"


def put_live(store: Path, pack: LivePack) -> None:
    """Write a pack's progress. A failed write is only logged, since progress is no result."""
    path = live_file(store, pack.pack_id)
    try:
        path.parent.mkdir(exist_ok=True)
        write_over(path, json.dumps(asdict(pack)).encode())
    except OSError as error:
        log.debug("%s is not told: %s", path, error)


def live_pack(store: Path, pack_id: str) -> LivePack | None:
    """Read the progress of a pack; None while there is none that can be read."""
    try:
        with open(live_file(store, pack_id), encoding="utf-8", opener=open_here) as file:
            return _from_json(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, *MALFORMED) as error:
        log.debug("%s tells nothing: %r", live_file(store, pack_id), error)
        return None


def live_packs(store: Path) -> tuple[LivePack, ...]:
    """Return the progress of every pack of a store that has a readable report, sorted by name."""
    names = sorted(path.stem for path in (store / "live").glob("*.json"))
    return tuple(pack for name in names if (pack := live_pack(store, name)) is not None)


def fresh_packs(store: Path) -> tuple[LivePack, ...]:
    """Return the progress of a store's packs whose reports are not stale."""
    now = time.time()
    return tuple(pack for pack in live_packs(store) if not pack.is_stale(now))


def forget_all_live(store: Path) -> None:
    """Delete the progress of all packs, left over from earlier drivers of a store."""
    for path in (store / "live").glob("*.json"):
        path.unlink(missing_ok=True)


def forget_live(store: Path, pack_id: str) -> None:
    """Delete the progress of a pack that has ended."""
    live_file(store, pack_id).unlink(missing_ok=True)


def _from_json(row: Mapping[str, Any]) -> LivePack:
    runs = tuple(rebuild(LiveRun, run) for run in row["runs"])
    return rebuild(LivePack, {**row, "runs": runs})
