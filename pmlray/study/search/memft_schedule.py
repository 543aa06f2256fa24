"""Schedule of MemFT runs, at the points where the law says that they can matter.

A token is sure to be decoded below a loss of ln 2. Where SFT ends far below it there is nothing
left to gain, and far above it no weighting helps; the runs go where the law puts SFT's final loss
near ln 2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import SearchSpec
from pmlray.design import CostModel
from pmlray.law import LawSummary
from pmlray.study.findings.placed_law import fitted_places
from pmlray.types import DesignPoint, Method, Observation, PlannedRun

log = logging.getLogger(__name__)

WHY = "MemFT beside plain fine-tuning, where the law puts its loss near ln 2"
LN2 = math.log(2.0)
LawAt = Callable[[DesignPoint], float | None]


def law_at_points(law: LawSummary, fitted: Iterable[Observation]) -> LawAt:
    """Return the best form of a law as the delta_loss (nats per token) that it predicts at a point;
    None at a placement without runs. fitted: the runs that it was fitted to."""
    places = fitted_places(law, fitted)

    def predict(point: DesignPoint) -> float | None:
        if point.placement not in places:
            return None
        at = places[point.placement]
        own = law.fit.law if at is None else law.fit.law_at(at)
        return float(own.predict(point.lora_rank, point.seq_len, point.train_steps))

    return predict


def boundary_points(
    law: LawAt, base_loss: float, cells: Sequence[DesignPoint], n: int
) -> tuple[DesignPoint, ...]:
    """Return the n cells whose predicted SFT loss is nearest to ln 2, of equals the longer first.

    Each seq_len is used once before any is used again, so that the comparison spans lengths.
    """

    deltas = {cell: law(cell) for cell in cells}
    distance = {c: abs(base_loss - delta - LN2) for c, delta in deltas.items() if delta is not None}
    ranked = sorted(distance, key=lambda c: (distance[c], -c.seq_len, c))
    first_of_length = list({c.seq_len: c for c in reversed(ranked)}.values())
    first_of_length.sort(key=ranked.index)
    others = [c for c in ranked if c not in first_of_length]
    return tuple((first_of_length + others)[:n])


def compared_points(
    spec: SearchSpec, law: LawAt, base_loss: float
) -> tuple[tuple[DesignPoint, int, int], ...]:
    """Return where methods are compared, as (point, sequence_id, seed), whatever the cost.

    Empty without `memft`.
    """
    if spec.memft is None:
        return ()
    points = boundary_points(law, base_loss, spec.space.points(), spec.memft.n_points)
    pairs = spec.replicates()[: spec.memft.n_pairs]
    return tuple((point, *pair) for point in points for pair in pairs)


def memft_runs(
    search: PreparedSearch,
    law: LawAt,
    base_loss: float,
    cost: CostModel,
    done: frozenset[str],
) -> tuple[tuple[PlannedRun, ...], ...]:
    """Return groups of paired runs, SFT and each MemFT method, still to be run within the budget.

    done: run_keys that are measured already (the law's own SFT runs among them). A group shares
    point, text and seed; groups that would overspend the MemFT budget are left out from the end.
    """
    spec = search.spec
    if spec.memft is None:
        return ()
    methods: tuple[Method, ...] = ("sft", *spec.memft.methods)
    groups, spent = [], 0.0
    for point, sequence_id, seed in compared_points(spec, law, base_loss):
        runs = tuple(
            replace(search.plan_run(point, method, sequence_id, seed, "memft"), why=WHY)
            for method in methods
        )
        missing = tuple(run for run in runs if run.run_key not in done)
        spent += sum(
            cost.predict(run.point) for run in runs if run.method != "sft" or run in missing
        )
        if spent > spec.budget.memft_seconds:
            if not groups:
                log.warning(
                    "budget.memft_gpu_seconds %.0f pays for no more runs of MemFT beside plain"
                    " fine-tuning: those of the next text take it to about %.0f here",
                    spec.budget.memft_seconds,
                    spent,
                )
            break
        if missing:
            groups.append(missing)
    return tuple(groups)
