"""Packing of runs onto devices: the size of a pack, the split into packs, and what memory holds.

Nothing here is a constant of a machine: time and memory are learnt from measured packs. A pack's
step is described by its rows (records) and positions (tokens through the suffix, without any
padding: the engine lays rows end to end).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

# Largest shares of a pack's time for fixed costs: the overhead of every step, and the start of the
# pack.
STEP_OVERHEAD_SHARE = 0.1
START_SHARE = 0.1
# Fewer runs share no trunks, and leave a device idle between packs.
LEAST_RUNS = 4
# Beyond twice what was seen, memory is a guess.
GROWTH = 2.0
MEMORY_SHARE = 0.85
MOST_PADDING = 0.1
# Packs are of one kind where their steps' sizes differ by less than a tenth: noise would decide the
# split between fixed and proportional cost. LEAST_APART is that, as a ratio of singular values.
ONE_KIND, LEAST_APART = 0.1, 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """Load of runs that stay together: rows and positions of their largest step, their
    device-seconds, and their largest rank. Only runs of one `kind` can be in one pack."""

    runs: int
    rows: int
    positions: int
    seconds: float
    rank: int = 0
    kind: int = 0

    @property
    def columns(self) -> int:
        """Columns of the runs' factors, which are padded to the largest rank."""
        return self.runs * self.rank


@dataclass(frozen=True, slots=True)
class PackUse:
    """Measured use of one pack.

    `rows` and `positions`: of its step at its fullest. `steps`: optimiser steps until its last run
    ended; `position_steps`: positions put through the suffix in all of them. `memory_bytes`: the
    process's or GPU's peak; `device_memory_bytes`: all that it could have had. Both 0: unknown.
    `columns`: of the adapters' factors, padded to the largest rank; `column_bytes`: of one of them,
    with its gradient and moments (0: unknown).
    """

    rows: int
    positions: int
    steps: float
    position_steps: float
    training_seconds: float
    wall_seconds: float
    memory_bytes: int
    device_memory_bytes: int
    columns: int = 0
    column_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """Device model learnt from measured packs.

    A step takes `step_seconds + position_seconds * positions`, a pack `start_seconds` more. Its
    memory is at most `memory_bytes + row_bytes * rows + position_bytes * positions` and
    `column_bytes` for every column of its adapters' factors, of `limit_bytes` (0: unknown, and then
    `seen_rows` and `seen_positions` alone say what is safe).
    `one_kind`: packs were too similar to separate a step's fixed time from that of its positions.
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
    one_kind: bool = False
    column_bytes: int = 0

    def memory(self, rows: int, positions: int, columns: int = 0) -> float:
        """Return an upper estimate of the bytes that such a pack takes."""
        return self.memory_bytes + self._growing(rows, positions, columns)

    def _growing(self, rows: int, positions: int, columns: int) -> float:
        steps = self.row_bytes * rows + self.position_bytes * positions
        return steps + self.column_bytes * columns

    def holds(self, rows: int, positions: int, columns: int = 0) -> bool:
        """Return whether such a pack is safe: within the memory, and not far beyond what was
        seen."""
        if rows > GROWTH * self.seen_rows or positions > GROWTH * self.seen_positions:
            return False
        return not self.limit_bytes or (
            self.memory(rows, positions, columns) <= MEMORY_SHARE * self.limit_bytes
        )

    def share_held(self, rows: int, positions: int, columns: int = 0) -> float:
        """Return the largest share of such a pack, at most 1, that is known to be safe."""
        shares = [1.0, GROWTH * self.seen_rows / rows, GROWTH * self.seen_positions / positions]
        grows = self._growing(rows, positions, columns)
        if self.limit_bytes and grows > 0:
            shares.append((MEMORY_SHARE * self.limit_bytes - self.memory_bytes) / grows)
        return max(0.0, min(shares))


def learn_device(packs: Sequence[PackUse]) -> Device | None:
    """Fit the model of the device that these packs ran on; None before one was measured.

    Times are fitted by non-negative least squares. So is memory, apart from what
    the adapters' factors are known to take, and then raised until no pack took more than predicted.
    Packs of one kind identify one number: it is then assigned to the positions alone, as if all of
    the memory grew with the pack, which errs to the safe side.
    """
    timed = [p for p in packs if p.training_seconds > 0 and p.position_steps > 0]
    if not timed:
        return None
    spent = np.array([[p.position_steps, p.steps] for p in timed], dtype=float)
    position, step = nonnegative_fit(spent, [p.training_seconds for p in timed])
    start = float(np.median([max(0.0, p.wall_seconds - p.training_seconds) for p in timed]))
    weighed = [p for p in timed if p.memory_bytes and p.device_memory_bytes]
    memory, per_row, per_position = 0.0, 0.0, 0.0
    if weighed:
        factors = [p.columns * p.column_bytes for p in weighed]
        peaks = np.array([p.memory_bytes for p in weighed], dtype=float) - factors
        shape = np.array([[p.positions, 1.0, p.rows] for p in weighed])
        per_position, memory, per_row = nonnegative_fit(shape, peaks)
        memory += max(0.0, float(np.max(peaks - shape @ [per_position, memory, per_row])))
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
        one_kind=len(_told_apart(spent)) == 1,
        column_bytes=max((p.column_bytes for p in weighed), default=0),
    )


def worthwhile_runs(
    device: Device | None, run: Load, train_steps: int, known_runs: int, n_devices: int = 1
) -> int:
    """Return how many runs like `run` the next pack of an adaptive search should have.

    The fewest that keep the overhead of a step and the start of the pack within their shares, since
    every run is chosen on the results of earlier packs alone; for the same reason the packs of all
    devices together have no more runs than are known already. What a device holds bounds both.
    After packs of one kind the next one differs in size, so that the cost of a step can be fitted:
    it has the fewest runs allowed or, where those packs were as small, twice that.
    """
    if device is None:
        return LEAST_RUNS
    per_run = device.position_seconds * run.positions
    wanted = LEAST_RUNS
    if device.one_kind:
        if abs(LEAST_RUNS * run.positions / device.seen_positions - 1) < ONE_KIND:
            wanted = 2 * LEAST_RUNS
    elif per_run > 0:
        filled = device.step_seconds * (1 / STEP_OVERHEAD_SHARE - 1) / per_run
        long_enough = device.start_seconds * (1 / START_SHARE - 1) / max(1, train_steps)
        amortised = (long_enough - device.step_seconds) / per_run
        wanted = max(wanted, math.ceil(filled - 1e-9), math.ceil(amortised - 1e-9))
    wanted = min(wanted, max(LEAST_RUNS, known_runs // n_devices))
    while wanted > 1 and not device.holds(
        wanted * run.rows, wanted * run.positions, wanted * run.columns
    ):
        wanted -= 1
    return wanted


def deal_out(
    groups: Sequence[Load],
    n_devices: int,
    holds: Callable[[Load], bool],
    busy: Sequence[float] = (),
) -> tuple[tuple[int, ...], ...]:
    """Split groups of runs into packs, by index: one a device, more where they do not fit.

    holds: returns whether a pack of such a load is allowed; busy:
    device-seconds of the packs already in training. Longest first, each group to the device that
    ends first (Graham 1969, DOI 10.1137/0117039): where all fits and none is busy, no pack takes
    more than 4/3 of the best possible. Groups assigned to a busy device are left out, to be dealt
    out again when that device asks for a pack. A group that fits nowhere is a pack by itself.
    Packs, and groups in a pack, keep the order of the groups.
    """
    order = sorted(range(len(groups)), key=lambda i: -groups[i].seconds)
    packs: list[list[int]] = []
    ends = list(busy)

    def taken(pack: Sequence[int]) -> float:
        return sum(groups[j].seconds for j in pack)

    for i in order:
        if len(packs) + len(busy) < max(n_devices, len(busy) + 1):
            packs.append([i])
            continue
        like = [p for p in packs if groups[p[0]].kind == groups[i].kind]
        fitting = [p for p in like if holds(_together([groups[j] for j in (*p, i)]))]
        least = min(fitting, key=taken, default=None)
        soonest = min(ends, default=math.inf)
        if soonest < (math.inf if least is None else taken(least)):
            ends[ends.index(soonest)] += groups[i].seconds
        elif least is None:
            packs.append([i])
        else:
            least.append(i)
    return tuple(sorted(tuple(sorted(p)) for p in packs))


def padded_batches(lengths: Sequence[int], most_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Split rows into batches padded to their longest, by index: of at most `most_tokens` with
    padding, of which less than a tenth is padding. A longer row stands alone."""
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
    """Solve least squares with coefficients >= 0 (Lawson and Hanson's active sets, by scipy).

    x_NK: columns in order of priority: one that is nearly a combination of those before it gets 0,
    since with the solver alone rounding would decide which of them gets weight.
    """
    x, y = np.asarray(x_NK, dtype=float), np.asarray(y_N, dtype=float)
    found, taken = np.zeros(x.shape[1]), _told_apart(x)
    scaled, norms = _unit_columns(x[:, taken])
    found[taken] = scipy.optimize.nnls(scaled, y)[0] / norms
    return tuple(map(float, found))


def _told_apart(x_NK: NDArray[np.float64]) -> list[int]:
    """Return the columns that are not nearly a combination of those before them."""
    taken: list[int] = []
    for k in range(x_NK.shape[1]):
        columns, _ = _unit_columns(x_NK[:, [*taken, k]])
        sizes = np.linalg.svd(columns, compute_uv=False)
        if len(sizes) > len(taken) and sizes[-1] >= LEAST_APART * sizes[0]:
            taken.append(k)
    return taken


def _unit_columns(x_NK: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale columns to length 1, without which the smallest singular value is meaningless; return
    them and their lengths."""
    norms: NDArray[np.float64] = np.linalg.norm(x_NK, axis=0)
    norms[norms == 0] = 1.0
    return x_NK / norms, norms


def _together(groups: Sequence[Load]) -> Load:
    return Load(
        sum(g.runs for g in groups),
        sum(g.rows for g in groups),
        sum(g.positions for g in groups),
        sum(g.seconds for g in groups),
        max(g.rank for g in groups),
        groups[0].kind,
    )
