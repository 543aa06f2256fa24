"""Which runs measure what a parameter is worth in each place, and in which order.

Every placement's rate is tuned alike: at its smaller rank on the first text, at the shortest length
and full steps, over the same grid of rates, which is continued by its own factor as long as the
best rate is at an edge. The other runs of the placement take that rate. The larger rank has longer
texts, so that neither holds all of them; one length is of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

N_LAYERS = 30


@dataclass(frozen=True, slots=True)
class Place:
    """One placement of SmolLM2-135M: modules and layers in PEFT's terms, and its two ranks.

    The ranks are those with the numbers of parameters nearest to 2,112 and 4,224.
    """

    modules: tuple[str, ...]
    layers: tuple[int, ...]
    ranks: tuple[int, int]

    @property
    def name(self) -> str:
        """As a law reads kinds and depths of sites from it."""
        layers = "+".join(map(str, self.layers))
        plural = "s" * (len(self.layers) > 1)
        return f"{' and '.join(self.modules)} of layer{plural} {layers} of {N_LAYERS}"


# Modules of every kind first: a table that is broken off tells most of them.
PLACES = (
    Place(("down_proj",), (28,), (1, 2)),
    Place(("mlp_block",), (24,), (2, 4)),
    Place(("gate_proj",), (24,), (1, 2)),
    Place(("q_proj", "v_proj"), (24,), (1, 2)),
    Place(("o_proj",), (24, 28), (1, 2)),
    Place(("down_proj",), (20,), (1, 2)),
    Place(("o_proj",), (24,), (2, 4)),
    Place(("q_proj", "v_proj"), (28,), (1, 2)),
)
# Of the smaller and of the larger rank.
LENGTHS = ((96, 160), (160, 320))
TEXTS = (0, 1, 2)
STEPS = 192
# On the first text the smaller rank has its longer text for twice the steps too: what is still to
# be learnt.
CHECK_STEPS = 2 * STEPS
# Of the two counts of parameters.
SMALLER_COUNT = 2112
GRID = (1e-2, 3e-2, 9e-2, 2.7e-1)
FACTOR = 3.0
# Tokens of the runs that train together: more make a token hardly cheaper, and a pack that is
# broken off is lost.
PACK_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured at a placement: rank, length in tokens, optimiser steps, and text."""

    rank: int
    length: int
    steps: int
    text: int


@dataclass(frozen=True, slots=True)
class Run:
    """One adapter to train."""

    place: Place
    cell: Cell
    rate: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a run: placement, cell and rate as in a table, and its final loss, nats per
    token; inf where it diverged."""

    placement: str
    cell: Cell
    rate: float
    final_loss: float


def tuning_cell(place: Place) -> Cell:
    """Return the cell that a placement's rate is tuned on."""
    return Cell(place.ranks[0], LENGTHS[0][0], STEPS, TEXTS[0])


def check_cell(place: Place) -> Cell:
    """Return the cell of twice the steps."""
    return Cell(place.ranks[0], LENGTHS[0][1], CHECK_STEPS, TEXTS[0])


def cells(place: Place, text: int) -> tuple[Cell, ...]:
    """Return the cells of a placement and text: two ranks with two lengths each."""
    return tuple(
        Cell(rank, length, STEPS, text)
        for rank, lengths in zip(place.ranks, LENGTHS, strict=True)
        for length in lengths
    )


def place_named(name: str) -> Place:
    """Return the placement of a name."""
    return next(place for place in PLACES if place.name == name)


def rates_left(losses: dict[float, float], grid: Sequence[float] = GRID) -> list[float]:
    """Return the rates that tuning has still to measure; none once the best is inside.

    losses: final loss of each rate measured so far.
    """
    if missing := [rate for rate in grid if rate not in losses]:
        return missing
    best = best_rate(losses)
    if best == max(losses):
        return [_next(best, FACTOR)]
    return [_next(best, 1.0 / FACTOR)] if best == min(losses) else []


def best_rate(losses: dict[float, float]) -> float:
    """Return the rate of the lowest final loss, the smaller of two alike."""
    return min(sorted(losses), key=lambda rate: losses[rate])


def tuned_rates(measured: Iterable[Measured]) -> dict[str, float]:
    """Return the rate of each placement whose tuning is done, by the placement's name."""
    losses: dict[str, dict[float, float]] = {}
    for row in measured:
        if row.cell == tuning_cell(place_named(row.placement)):
            losses.setdefault(row.placement, {})[row.rate] = row.final_loss
    return {
        name: best_rate(of_rate)
        for name, of_rate in losses.items()
        if not rates_left(of_rate) and math.isfinite(min(of_rate.values()))
    }


def next_pack(measured: Sequence[Measured]) -> tuple[Run, ...]:
    """Return the runs to train next, all of one placement and text; none when all is measured."""
    done = {(m.placement, m.cell, m.rate) for m in measured}
    tuned = tuned_rates(measured)
    for place, wanted in _stages():
        if (rate := tuned.get(place.name)) is None:
            at = tuning_cell(place)
            own = [m for m in measured if (m.placement, m.cell) == (place.name, at)]
            rates = rates_left({m.rate: m.final_loss for m in own})
            runs = [Run(place, at, rate) for rate in rates]
        else:
            runs = [Run(place, cell, rate) for cell in wanted]
        if left := [run for run in runs if (place.name, run.cell, run.rate) not in done]:
            return _within(left)
    return ()


def _stages() -> list[tuple[Place, tuple[Cell, ...]]]:
    """Return what is measured after what: the first text everywhere, then the check, then on."""
    first, *others = TEXTS
    of_texts = [(place, cells(place, text)) for text in others for place in PLACES]
    return [
        *((place, cells(place, first)) for place in PLACES),
        *((place, (check_cell(place),)) for place in PLACES),
        *of_texts,
    ]


def _within(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the first runs, at least one, that have no more than PACK_TOKENS tokens together."""
    taken: list[Run] = []
    for run in runs:
        if taken and sum(r.cell.length for r in taken) + run.cell.length > PACK_TOKENS:
            break
        taken.append(run)
    return tuple(taken)


def _next(rate: float, factor: float) -> float:
    """Return the grid's next rate, to as many digits as a table keeps."""
    return float(f"{rate * factor:.6g}")
