"""gpu_seconds that a method takes to a level of exact recall, read off its budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmlray.study.comparison.equal_recall import (
    Cells,
    cost_at,
    known_cost,
    recall_by_text,
    resampled,
)
from pmlray.types import DesignPoint, Method, Schedule

RECALL_LEVELS = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class SecondsToRecall:
    """gpu_seconds a run at which a method's mean exact recall reaches `recall`.

    Between the budgets that were run, mean recall is interpolated linearly in log(gpu_seconds).
    gpu_seconds is None where no budget reaches the level, or each does: `above` says which. Only
    texts that were measured at every budget count. low, high: central 95 % over resampled texts
    (bootstrap); None as in `resampled`.
    """

    method: Method
    lora_rank: int
    seq_len: int
    schedule: Schedule | None
    recall: float
    gpu_seconds: float | None
    low: float | None
    high: float | None
    above: bool


def seconds_to_recall(cells: Cells, seed: int = 0) -> tuple[SecondsToRecall, ...]:
    """Return the cost of each level for every method at each rank and length of several budgets.

    cells: the runs of every point and method; seed: of the resampling.
    """
    families: dict[tuple[Method, int, int, Schedule | None], list[DesignPoint]] = {}
    for point, method in cells:
        of = (method, point.lora_rank, point.seq_len, point.schedule)
        families.setdefault(of, []).append(point)
    return tuple(
        _to_level(cells, *family, points, level, seed)
        for family, points in families.items()
        if len(points) > 1 and _shared_texts(cells, points, family[0])
        for level in RECALL_LEVELS
    )


def _shared_texts(cells: Cells, points: Sequence[DesignPoint], method: Method) -> list[int]:
    own = [{o.sequence_id for o in cells[point, method]} for point in points]
    return sorted(set.intersection(*own))


def _to_level(
    cells: Cells,
    method: Method,
    lora_rank: int,
    seq_len: int,
    schedule: Schedule | None,
    points: Sequence[DesignPoint],
    level: float,
    seed: int,
) -> SecondsToRecall:
    costs = [float(np.mean([o.gpu_seconds for o in cells[p, method]])) for p in points]
    own = [recall_by_text(cells[p, method], "exact_recall") for p in points]
    texts = _shared_texts(cells, points, method)

    def needed(chosen: Sequence[int]) -> float:
        means = [float(np.mean([of[text] for text in chosen])) for of in own]
        # Where the cheapest budget is above the level already, nothing cheaper was run.
        return cost_at(costs, means, level)

    found = needed(texts)
    low, high = resampled(needed, texts, seed)
    return SecondsToRecall(
        method,
        lora_rank,
        seq_len,
        schedule,
        level,
        known_cost(found),
        low,
        high,
        above=found == 0,
    )
