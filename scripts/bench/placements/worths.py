"""What a table of runs says a parameter is worth in each place. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pmlray.errors import DataError
from pmlray.law import (
    LawData,
    average_laws,
    compare_placement_laws,
    named_placement,
    placement_worths,
)
from scripts.bench.placements.plan import PLACES
from scripts.bench.placements.selection import LEVEL, by, cell_of, over_texts, ratio_over_texts
from scripts.bench.placements.table import Row

SAMPLES = 400
# Beside this placement's parameters those of others are valued.
REFERENCE = next(place.name for place in PLACES if place.modules == ("mlp_block",))
# Where a loss fell by more than this share of its base's, the text limits what is stored.
NEARLY_SATURATED = 0.9


def law_points(rows: Sequence[Row]) -> LawData:
    """Return the points of a law of several placements; DataError where there are none."""
    if not rows:
        raise DataError("the table has no runs at tuned rates yet: run with --measure first")

    def column(value: Callable[[Row], float]) -> np.ndarray:
        return np.array([value(row) for row in rows], dtype=float)

    delta, base = column(lambda r: r.delta_loss), column(lambda r: r.base_loss_nats)
    points = LawData(
        lora_rank=column(lambda r: r.rank),
        seq_len=column(lambda r: r.length),
        train_steps=column(lambda r: r.steps),
        delta_loss=delta,
        base_loss=base,
        final_loss=base - delta,
        cluster=np.array([row.sequence for row in rows], dtype=np.int64),
    )
    return points.placed(
        [named_placement(row.placement, row.adapter_params / row.rank) for row in rows]
    )


def bits_by_placement(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return bits a parameter of each placement by its cells, and their ratio to the reference's.

    The ratio is that of the cells in which neither is nearly saturated, a value a text.
    """
    free = [row for row in rows if row.delta_loss < NEARLY_SATURATED * row.base_loss_nats]
    reference = {cell_of(row): row.bits_a_parameter for row in free if row.placement == REFERENCE}
    found: dict[str, dict[str, Any]] = {}
    for name, own in by(rows, lambda row: row.placement).items():
        log_ratios: dict[int, list[float]] = {}
        for row in free:
            if row.placement == name and (beside := reference.get(cell_of(row))) is not None:
                log_ratio = math.log(row.bits_a_parameter / beside)
                log_ratios.setdefault(row.sequence, []).append(log_ratio)
        of_texts = [float(np.mean(logs)) for logs in log_ratios.values()]
        found[name] = {
            "cells": [_cell(rows) for rows in by(own, lambda r: (r.rank, r.length)).values()],
            "beside_reference": asdict(ratio_over_texts(of_texts)) if of_texts else None,
            "cells_compared": sum(map(len, log_ratios.values())),
            "runs": len(own),
            "converged": sum(row.status != "optimisation_limited" for row in own),
            "fall_if_doubled": float(np.median([row.fall_if_doubled_nats for row in own])),
        }
    return found


def _cell(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a placement's runs of one rank and length, one a text, in the mean."""
    return {
        "parameters": rows[0].adapter_params,
        "length": rows[0].length,
        "bits": asdict(over_texts([row.bits_a_parameter for row in rows])),
        "share_of_base": float(np.mean([row.delta_loss / row.base_loss_nats for row in rows])),
        "final_loss": float(np.mean([row.final_loss_nats for row in rows])),
    }


def law_findings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of the laws at placements and cells that they did not see, and the worth of
    each placement's parameter by the pooled law."""
    data = law_points(rows)
    samples = average_laws(data).sample(SAMPLES, np.random.default_rng(0))
    worths = placement_worths(data, samples, level=LEVEL)
    return {
        "laws": [errors.to_json() for errors in compare_placement_laws(data)],
        "worths": [worth.to_json() for worth in worths],
    }
