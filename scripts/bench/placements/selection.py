"""Rows of a table that belong together, and means over texts. Pure.

Intervals over texts are Student's, of one value a text; with three texts they are wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import t

from scripts.bench.placements.plan import (
    SMALLER_COUNT,
    Place,
    cells,
    check_cell,
    place_named,
    tuned_rates,
    tuning_cell,
)
from scripts.bench.placements.table import Row

Key = TypeVar("Key")
LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over texts with its central interval; None of fewer than two texts."""

    value: float
    low: float | None
    high: float | None
    n_texts: int


def over_texts(
    values: Sequence[float], possible: tuple[float, float] = (-math.inf, math.inf)
) -> Mean:
    """Return the mean of one value a text, with Student's interval at LEVEL.

    possible: least and most that a value can be, beyond which no interval reaches.
    """
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Mean(middle, None, None, n)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Mean(middle, max(possible[0], middle - half), min(possible[1], middle + half), n)


def ratio_over_texts(log_ratios: Sequence[float]) -> Mean:
    """Return `over_texts` of logs, back as ratios."""
    of_logs = over_texts(log_ratios)
    edges = [None if x is None else math.exp(x) for x in (of_logs.low, of_logs.high)]
    return Mean(math.exp(of_logs.value), edges[0], edges[1], of_logs.n_texts)


def tuned_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the runs of the plan's cells at the tuned rate of their placement."""
    return [row for row in _at_tuned_rates(rows) if row.cell in cells(_place(row), row.sequence)]


def check_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the runs of twice the steps at the tuned rate of their placement."""
    return [row for row in _at_tuned_rates(rows) if row.cell == check_cell(_place(row))]


def tuning_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the runs that rates were tuned on."""
    return [row for row in rows if row.cell == tuning_cell(_place(row))]


def cell_of(row: Row) -> tuple[int, int, int]:
    """Return the count of parameters, 1 for the smaller, with length and text."""
    return round(row.adapter_params / SMALLER_COUNT), row.length, row.sequence


def by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Return rows by a key of theirs, in their order."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _at_tuned_rates(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    tuned = tuned_rates(row.measured for row in rows)
    return [row for row in rows if tuned.get(row.placement) == row.learning_rate]


def _place(row: Row) -> Place:
    return place_named(row.placement)
