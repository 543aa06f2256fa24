"""What an adapter's parameter is worth in each place, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pmlray.law.data import FloatArray, LawData
from pmlray.law.fitting.averaging import AveragedSamples
from pmlray.law.placements import KINDS, Placement, Site

# Relative depths at which the worth of a site is told.
DEPTHS = {"first": 0.0, "middle": 0.5, "last": 1.0}


@dataclass(frozen=True, slots=True)
class PlaceWorth:
    """What one parameter of a placement, or of a site of some kind or depth, is worth beside one of
    the reference placement: the median with its central interval. `n_points`: those that were
    measured there, 0 for one told from its kin and None where no single place is meant."""

    name: str
    value: float
    low: float
    high: float
    n_points: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


def placement_worths(
    data: LawData,
    samples: AveragedSamples,
    others: Sequence[Placement] = (),
    level: float = 0.9,
) -> tuple[PlaceWorth, ...]:
    """Return the worth of each placement of the points, the reference first, then of others.

    data: the points that the law was fitted to; others: placements without points.
    """
    found: list[PlaceWorth] = []
    for placement in (*data.placements, *others):
        n_points = 0
        if placement in data.placements and data.placement is not None:
            n_points = int(np.sum(data.placement == data.placements.index(placement)))
        log_w = samples.log_worth(placement)
        found.append(_worth(placement.name, log_w, level, n_points))
    return tuple(found)


def kind_worths(samples: AveragedSamples, level: float = 0.9) -> tuple[PlaceWorth, ...]:
    """Return the worth of each kind of module, halfway through the base, without any placement's
    own deviation from its kin."""
    return tuple(
        _worth(kind, samples.log_worth_of_kin(Placement(kind, (Site(kind, 0.5, 1.0),))), level)
        for kind in KINDS
    )


def depth_worths(samples: AveragedSamples, level: float = 0.9) -> tuple[PlaceWorth, ...]:
    """Return the worth of a module at the first, the middle and the last layer beside that of the
    same module in the middle, as its kin have it."""
    at = {
        name: samples.log_worth_of_kin(Placement(name, (Site("other", depth, 1.0),)))
        for name, depth in DEPTHS.items()
    }
    return tuple(_worth(name, log_w - at["middle"], level) for name, log_w in at.items())


def _worth(
    name: str, log_worth_n: FloatArray, level: float, n_points: int | None = None
) -> PlaceWorth:
    tail = (1.0 - level) / 2.0
    low, middle, high = np.exp(np.quantile(log_worth_n, [tail, 0.5, 1.0 - tail])).tolist()
    return PlaceWorth(name, middle, low, high, n_points)
