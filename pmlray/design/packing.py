"""Which runs share a device: how many are worth packing, how they are dealt out, what fits.

Nothing here is a constant of a machine: time and memory are learnt from packs that were measured.
A pack's step is told by its rows (records) and positions (tokens through the suffix, without any
padding: the engine lays rows end to end).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Shares of a pack's time that may go to what training does not scale with: the overhead of every
# step, and the start of the pack.
STEP_OVERHEAD_SHARE = 0.1
START_SHARE = 0.1
# Fewer runs share no trunks, and leave a device idle between packs.
LEAST_RUNS = 4
# Beyond twice what was seen, memory is a guess.
GROWTH = 2.0
MEMORY_SHARE = 0.85
MOST_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What runs that stay together ask of a device: rows and positions of their step at its
    fullest, and the device-seconds that they take."""

    runs: int
    rows: int
    positions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PackUse:
    """What one pack took, as measured.

    `rows` and `positions`: of its step at its fullest. `steps`: optimiser steps until its last run
    ended; `position_steps`: positions put through the suffix in all of them. `memory_bytes`: the
    process's or GPU's peak; `device_memory_bytes`: all that it could have had. Both 0: unknown.
    """

    rows: int
    positions: int
    steps: float
    position_steps: float
    training_seconds: float
    wall_seconds: float
    memory_bytes: int
    device_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device as packs have shown it.

    A step takes `step_seconds + position_seconds * positions`, a pack `start_seconds` more. Its
    memory is at most `memory_bytes + row_bytes * rows + position_bytes * positions` of
    `limit_bytes` (0: unknown, so that only `seen_rows` and `seen_positions` say what is safe).
    """

    step_seconds: float
    position_seconds: float
    start_seconds: float
    memory_bytes: float
    row_bytes: float
    position_bytes: float
    limit_bytes: float
    seen_rows: int
    seen_positions: int

    def memory(self, rows: int, positions: int) -> float:
        """Most bytes that such a pack is expected to take."""
        return self.memory_bytes + self.row_bytes * rows + self.position_bytes * positions

    def holds(self, rows: int, positions: int) -> bool:
        """Whether such a pack is safe: within the memory, and not far beyond what was seen."""
        if rows > GROWTH * self.seen_rows or positions > GROWTH * self.seen_positions:
            return False
        return not self.limit_bytes or (
            self.memory(rows, positions) <= MEMORY_SHARE * self.limit_bytes
        )


def learn_device(packs: Sequence[PackUse]) -> Device | None:
    """The device that these packs ran on; None before one was measured.

    Times are fitted by non-negative least squares. So is memory, then raised until no pack took
    more than it says.
    """
    timed = [p for p in packs if p.training_seconds > 0 and p.position_steps > 0]
    if not timed:
        return None
    step, position = nonnegative_fit(
        [[p.steps, p.position_steps] for p in timed], [p.training_seconds for p in timed]
    )
    start = float(np.median([max(0.0, p.wall_seconds - p.training_seconds) for p in timed]))
    weighed = [p for p in timed if p.memory_bytes and p.device_memory_bytes]
    memory, per_row, per_position = 0.0, 0.0, 0.0
    if weighed:
        peaks = np.array([p.memory_bytes for p in weighed], dtype=float)
        shape = np.array([[1.0, p.rows, p.positions] for p in weighed])
        if len(weighed) == 1:
            # Nothing tells what is fixed: as if all of it grew, which errs to the safe side.
            per_position = peaks[0] / weighed[0].positions
        else:
            memory, per_row, per_position = nonnegative_fit(shape, peaks)
            memory += max(0.0, float(np.max(peaks - shape @ [memory, per_row, per_position])))
    return Device(
        step,
        position,
        start,
        memory,
        per_row,
        per_position,
        min((p.device_memory_bytes for p in weighed), default=0),
        max(p.rows for p in timed),
        max(p.positions for p in timed),
    )


def worthwhile_runs(device: Device | None, run: Load, train_steps: int, known_runs: int) -> int:
    """How many runs like `run` the next pack of an adaptive search should have.

    As few as keep the overhead of a step and the start of the pack within their shares, since every
    run is chosen knowing only what earlier packs measured; for the same reason no more than are
    known already. What a device holds bounds both.
    """
    if device is None:
        return LEAST_RUNS
    per_run = device.position_seconds * run.positions
    wanted = LEAST_RUNS
    if per_run > 0:
        filled = device.step_seconds * (1 / STEP_OVERHEAD_SHARE - 1) / per_run
        long_enough = device.start_seconds * (1 / START_SHARE - 1) / max(1, train_steps)
        amortised = (long_enough - device.step_seconds) / per_run
        wanted = max(wanted, math.ceil(filled - 1e-9), math.ceil(amortised - 1e-9))
    wanted = min(wanted, max(LEAST_RUNS, known_runs))
    while wanted > 1 and not device.holds(wanted * run.rows, wanted * run.positions):
        wanted -= 1
    return wanted


def deal_out(
    groups: Sequence[Load], n_devices: int, holds: Callable[[int, int, int], bool]
) -> tuple[tuple[int, ...], ...]:
    """Groups of runs as packs, by index: one a device, more where they do not fit.

    holds: whether a pack of so many runs, rows and positions may be. Longest first, each to the
    pack that ends first (Graham 1969, DOI 10.1137/0117039): where all fits, no pack takes more than
    4/3 of the best possible. A group that fits nowhere stands alone. Packs, and groups in a pack,
    keep the order of the groups.
    """
    order = sorted(range(len(groups)), key=lambda i: -groups[i].seconds)
    packs: list[list[int]] = []
    for i in order:
        fitting = [p for p in packs if holds(*_together([groups[j] for j in (*p, i)]))]
        if len(packs) < n_devices or not fitting:
            packs.append([i])
        else:
            min(fitting, key=lambda p: sum(groups[j].seconds for j in p)).append(i)
    return tuple(sorted(tuple(sorted(p)) for p in packs))


def padded_batches(lengths: Sequence[int], most_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Rows as batches padded to their longest, by index: of at most `most_tokens` with padding,
    of which less than a tenth is padding. A longer row stands alone."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    used = 0
    for i in order:
        if batches:
            area = (len(batches[-1]) + 1) * lengths[batches[-1][0]]
            if area <= most_tokens and area - used - lengths[i] < MOST_PADDING * area:
                batches[-1].append(i)
                used += lengths[i]
                continue
        batches.append([i])
        used = lengths[i]
    return tuple(map(tuple, batches))


def nonnegative_fit(x_NK: ArrayLike, y_N: ArrayLike) -> tuple[float, ...]:
    """Least squares with coefficients >= 0, by trying every set of positive ones (K is small)."""
    x, y = np.asarray(x_NK, dtype=float), np.asarray(y_N, dtype=float)
    k = x.shape[1]
    # Columns of one size, or the smallest singular value says nothing.
    scale: NDArray[np.float64] = np.linalg.norm(x, axis=0)
    scale[scale == 0] = 1.0
    best, least = np.zeros(k), float(y @ y)
    for n in range(1, k + 1):
        for columns in combinations(range(k), n):
            taken = list(columns)
            found, _, rank, _ = np.linalg.lstsq(x[:, taken] / scale[taken], y, rcond=1e-9)
            if rank < n or found.min() < 0:
                continue
            rest = y - (x[:, taken] / scale[taken]) @ found
            if (squares := float(rest @ rest)) < least * (1 - 1e-12):
                least, best = squares, np.zeros(k)
                best[taken] = found / scale[taken]
    return tuple(map(float, best))


def _together(groups: Sequence[Load]) -> tuple[int, int, int]:
    return (
        sum(g.runs for g in groups),
        sum(g.rows for g in groups),
        sum(g.positions for g in groups),
    )
