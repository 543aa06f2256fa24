"""What a table of runs at several placements says: worths, laws, orders and rates. Pure.

Intervals over texts are Student's, of one value a text; with three texts they are wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.stats import spearmanr, t

from pmlray.errors import DataError
from pmlray.law import (
    LawData,
    PlaceWorth,
    average_laws,
    compare_placement_laws,
    named_placement,
    placement_worths,
)
from scripts.bench.placements.plan import (
    PLACES,
    SMALLER_COUNT,
    Place,
    cells,
    check_cell,
    place_named,
    tuned_rates,
    tuning_cell,
)
from scripts.bench.placements.table import CURVE_STEPS, Row

Key = TypeVar("Key")
LEVEL = 0.9
SAMPLES = 400
DEFAULT_RATE = 1e-2
# Beside this placement's parameters those of others are valued.
REFERENCE = next(place.name for place in PLACES if place.modules == ("mlp_block",))
# Of a run whose loss fell by more than this share of its base's, bits a parameter say nothing.
SATURATED = 0.95


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over texts with its central interval; None of fewer than two texts."""

    value: float
    low: float | None
    high: float | None
    n_texts: int


def over_texts(values: Sequence[float]) -> Mean:
    """Return the mean of one value a text, with Student's interval at LEVEL."""
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Mean(middle, None, None, n)
    half = float(t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Mean(middle, middle - half, middle + half, n)


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
    """Return bits a parameter of each placement, in the mean over its cells and then over texts,
    and its ratio to the reference's at the same counts, lengths and texts."""
    reference = {_cell(row): row.bits_a_parameter for row in rows if row.placement == REFERENCE}
    found: dict[str, dict[str, Any]] = {}
    for name, own in _by(rows, lambda row: row.placement).items():
        free = [row for row in own if row.delta_loss < SATURATED * row.base_loss_nats]
        beside = [row for row in free if _cell(row) in reference]
        bits = [
            float(np.mean([row.bits_a_parameter for row in of_text]))
            for of_text in _by(free, lambda row: row.sequence).values()
        ]
        log_ratios = [
            float(np.mean([math.log(r.bits_a_parameter / reference[_cell(r)]) for r in of_text]))
            for of_text in _by(beside, lambda row: row.sequence).values()
        ]
        losses = [row.final_loss_nats for row in own]
        found[name] = {
            "parameters": sorted({row.adapter_params for row in own}),
            "bits": asdict(over_texts(bits)) if bits else None,
            "beside_reference": asdict(ratio_over_texts(log_ratios)) if log_ratios else None,
            "final_loss": [min(losses), max(losses)],
            "runs": len(own),
            "saturated": len(own) - len(free),
            "converged": sum(row.status == "converged" for row in own),
            "fall_if_doubled": float(np.median([row.fall_if_doubled_nats for row in own])),
        }
    return found


def law_findings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of the laws at placements and cells that they did not see, and the worth of
    each placement's parameter by the pooled law."""
    data = law_points(rows)
    samples = average_laws(data).sample(SAMPLES, np.random.default_rng(0))
    worths: tuple[PlaceWorth, ...] = placement_worths(data, samples, level=LEVEL)
    return {
        "laws": [errors.to_json() for errors in compare_placement_laws(data)],
        "worths": [worth.to_json() for worth in worths],
    }


def orders(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, for each early step, how the placements' order then agrees with that at the end.

    Placements are ordered by bits a parameter among the runs of one count, length and text. Each
    text's value is the mean of Spearman's correlation over its cells; `first_is_first`: share of
    the cells whose best placement is the best at the end too.
    """
    found: list[dict[str, Any]] = []
    cells = {at: own for at, own in _by(rows, _cell).items() if len({r.placement for r in own}) > 2}
    for step in CURVE_STEPS:
        by_text: dict[int, list[float]] = {}
        first: list[bool] = []
        for (_, _, text), own in cells.items():
            early = [row.delta_at(step) / row.adapter_params for row in own]
            late = [row.delta_loss / row.adapter_params for row in own]
            by_text.setdefault(text, []).append(float(spearmanr(early, late).statistic))
            first.append(int(np.argmax(early)) == int(np.argmax(late)))
        if first:
            mean = over_texts([float(np.mean(of_text)) for of_text in by_text.values()])
            found.append(
                {"step": step, "correlation": asdict(mean), "first_is_first": float(np.mean(first))}
            )
    return found


def orders_tuned_early(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the same with each placement's rate the best of those measured at that early step.

    rows: all runs of the tuning, of one count, length and text. No early loss has had a decay.
    """
    own = {
        name: of
        for name, of in _by(rows, lambda row: row.placement).items()
        if len(of) > 2 and all(math.isfinite(row.final_loss_nats) for row in of)
    }
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


def rates(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return what each rate of the tuning left of the loss, by placement, and what the product's
    default rate left above the best; nats per token."""
    found: list[dict[str, Any]] = []
    for name, own in _by(tuning_rows(rows), lambda row: row.placement).items():
        losses = {row.learning_rate: row.final_loss_nats for row in sorted(own, key=_rate)}
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


def findings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all that the table says so far.

    rows: every run. Raises DataError where no placement's rate is tuned yet.
    """
    tuned = tuned_rows(rows)
    law_points(tuned)
    several = len({row.placement for row in tuned}) > 1
    return {
        "runs": len(rows),
        "at_tuned_rates": len(tuned),
        "gpu_seconds": sum(row.gpu_seconds for row in rows),
        "bits": bits_by_placement(tuned),
        **(law_findings(tuned) if several else {"laws": [], "worths": []}),
        "orders": orders(tuned),
        "orders_tuned_early": orders_tuned_early(tuning_rows(rows)),
        "more_steps": more_steps(rows),
        "rates": rates(rows),
    }


def _at_tuned_rates(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    tuned = tuned_rates(row.measured for row in rows)
    return [row for row in rows if tuned.get(row.placement) == row.learning_rate]


def _place(row: Row) -> Place:
    return place_named(row.placement)


def _cell(row: Row) -> tuple[int, int, int]:
    """Return the count of parameters, 1 for the smaller, with length and text."""
    return round(row.adapter_params / SMALLER_COUNT), row.length, row.sequence


def _rate(row: Row) -> float:
    return row.learning_rate


def _by(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
