"""Whether an early order of placements is the one at the end, and what their rates are. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from scripts.bench.placements.selection import (
    by,
    cell_of,
    check_rows,
    over_texts,
    tuned_rows,
    tuning_rows,
)
from scripts.bench.placements.table import CURVE_STEPS, Row

DEFAULT_RATE = 1e-2


def orders(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each early step, how the placements' order then agrees with that at the end.

    Placements are ordered by bits a parameter among the runs of one count, length and text. Each
    text's value is the mean of Spearman's correlation over its cells; `first_is_first`: share of
    the cells whose best placement is the best at the end too.
    """
    found: list[dict[str, Any]] = []
    cells = {
        at: own for at, own in by(rows, cell_of).items() if len({r.placement for r in own}) > 2
    }
    for step in CURVE_STEPS:
        by_text: dict[int, list[float]] = {}
        first: list[bool] = []
        for (_, _, text), own in cells.items():
            early = [row.delta_at(step) / row.adapter_params for row in own]
            late = [row.delta_loss / row.adapter_params for row in own]
            by_text.setdefault(text, []).append(float(spearmanr(early, late).statistic))
            first.append(int(np.argmax(early)) == int(np.argmax(late)))
        if first:
            mean = over_texts([float(np.mean(of)) for of in by_text.values()], (-1.0, 1.0))
            found.append(
                {"step": step, "correlation": asdict(mean), "first_is_first": float(np.mean(first))}
            )
    return found


def orders_tuned_early(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the same with each placement's rate the best of those measured at that early step.

    rows: all runs of the tuning, of one count, length and text; those that diverged are left out.
    No early loss has had a decay.
    """
    kept = [row for row in rows if math.isfinite(row.final_loss_nats)]
    own = {name: of for name, of in by(kept, lambda row: row.placement).items() if len(of) > 2}
    if len(own) < 3:
        return []
    late = [max(row.delta_loss / row.adapter_params for row in of) for of in own.values()]
    found: list[dict[str, Any]] = []
    for step in CURVE_STEPS:
        early = [max(row.delta_at(step) / row.adapter_params for row in of) for of in own.values()]
        found.append(
            {"step": step, "correlation": float(spearmanr(early, late).statistic), "of": len(own)}
        )
    return found


def more_steps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what twice the steps changed, by placement, beside what the certificate had told."""
    once = {(row.placement, row.rank, row.length, row.sequence): row for row in tuned_rows(rows)}
    found: list[dict[str, Any]] = []
    for twice in check_rows(rows):
        at = (twice.placement, twice.rank, twice.length, twice.sequence)
        if at not in once:
            continue
        found.append(
            {
                "placement": twice.placement,
                "bits": once[at].bits_a_parameter,
                "bits_twice": twice.bits_a_parameter,
                "fall": once[at].final_loss_nats - twice.final_loss_nats,
                "fall_told": once[at].fall_if_doubled_nats,
                "fall_left": twice.fall_if_doubled_nats,
            }
        )
    return found


def rates(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return what each rate of the tuning left of the loss, by placement, and what the product's
    default rate left above the best; nats per token."""
    found: list[dict[str, Any]] = []
    for name, own in by(tuning_rows(rows), lambda row: row.placement).items():
        losses = {
            row.learning_rate: row.final_loss_nats
            for row in sorted(own, key=lambda row: row.learning_rate)
        }
        best = min(losses, key=lambda rate: losses[rate])
        above = losses[DEFAULT_RATE] - losses[best] if DEFAULT_RATE in losses else None
        found.append(
            {
                "placement": name,
                "parameters": own[0].adapter_params,
                "final_loss": losses,
                "best": best,
                "edge": best in (min(losses), max(losses)),
                "default_above_best": above,
            }
        )
    return found
