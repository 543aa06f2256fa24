"""Progress of a study, and the same as metrics for a tracker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pmlray.law import LawSummary
from pmlray.live_packs import LivePack
from pmlray.types import Phase, PlannedRun

PARAMETERS = ("coef", "rank_exponent", "len_exponent", "offset")
ERRORS = ("r2", "mape", "heldout_mape", "sequence_mape", "extrapolation_mape")


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a study; `gpu_seconds_left` and the counts are those of the current phase.

    `running` are the runs handed out, each with the reason for its choice. `gpu_seconds_open`:
    cost of the phase's runs without a result at the rate so far, inf before a rate is measured, as
    is `gpu_seconds_left` where no budget tells it.
    `n_all`: number of runs of a comparison, known from its start. `packs`: live reports of the
    packs in training. `stage`: current activity while no pack reports, for `stage_seconds` so far.
    `what`: name of a study that is neither a search nor a comparison, and fits no law.
    `ended_before`: for packs continued after an interruption, by pack_id, the runs that had ended
    by then and are counted here, by run_key, with their gpu_seconds.
    """

    phase: Phase
    n_done: int
    n_pending: int
    n_failed: int
    gpu_seconds_spent: float
    gpu_seconds_left: float
    law: LawSummary | None
    gpu_seconds_open: float = math.inf
    running: tuple[PlannedRun, ...] = ()
    n_all: int | None = None
    packs: tuple[LivePack, ...] = ()
    stage: str = ""
    stage_seconds: float = 0.0
    what: str = ""
    ended_before: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def law_metrics(law: LawSummary) -> dict[str, float]:
    """Return the law's parameters and interval widths as flat metrics."""
    values = {name: getattr(law.fit.law, name) for name in PARAMETERS}
    values |= {name: getattr(law, name) for name in ERRORS}
    metrics = {f"law/{n}": float(value) for n, value in values.items() if value is not None}
    for name, (low, high) in law.intervals.items():
        metrics[f"law/{name}_width"] = high - low
    if law.known_interval is not None:
        metrics["law/target_relative_interval"] = law.known_interval
    return metrics


def progress_metrics(now: Progress) -> dict[str, float]:
    """Return the progress as flat metrics.

    The remaining and the open cost are named after their phase; neither is there before it is
    known.
    """
    metrics = {
        "progress/n_done": float(now.n_done),
        "progress/n_running": float(now.n_pending),
        "progress/n_failed": float(now.n_failed),
        "progress/gpu_seconds_spent": now.gpu_seconds_spent,
    }
    costs = {"left": now.gpu_seconds_left, "open": now.gpu_seconds_open}
    return metrics | {
        f"progress/{now.phase}_gpu_seconds_{name}": cost
        for name, cost in costs.items()
        if math.isfinite(cost)
    }
