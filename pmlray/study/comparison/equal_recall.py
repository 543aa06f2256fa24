"""Cost of a method at the recall of plain SFT: in lora_rank, or in gpu_seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import numpy as np

from pmlray.types import DesignPoint, Method, Observation

Cost = Literal["lora_rank", "gpu_seconds"]
Cells = Mapping[tuple[DesignPoint, Method], Sequence[Observation]]
FIGURES: Mapping[str, Callable[[Observation], float]] = MappingProxyType(
    {"exact_recall": lambda o: o.recall.exact, "token_recall": lambda o: o.recall.token}
)
N_RESAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True, slots=True)
class EqualRecall:
    """Cost at which a method reaches the mean `recall` of SFT at a point, and its ratio to SFT's.

    Ranks are compared at equal length and steps, gpu_seconds at equal rank and length, over
    budgets, both under the same schedule. Only texts that were measured in every cell of a
    comparison count. Between its own points a method's mean recall is interpolated linearly in
    log(cost). `needed` and `ratio` are None where its points do not reach so far. `low` and `high`
    bound the central 95 % of the ratio over resampled texts (bootstrap); they are None where a
    bound is out of reach, with a single text, and where all resamples agree, which tells no spread.
    """

    method: Method
    figure: str
    cost: Cost
    sft_point: DesignPoint
    recall: float
    sft_cost: float
    needed: float | None
    ratio: float | None
    low: float | None
    high: float | None


def equal_recall(cells: Cells, seed: int = 0) -> tuple[EqualRecall, ...]:
    """Return all comparisons of cost that the measured points allow.

    cells: the runs of every point and method; seed: of the resampling.
    """
    found = []
    others: list[Method] = [method for _, method in cells if method != "sft"]
    for method in dict[Method, None].fromkeys(others):
        for point, _ in (cell for cell in cells if cell[1] == "sft"):
            for cost in ("lora_rank", "gpu_seconds"):
                family = [p for p, m in cells if m == method and _alike(p, point, cost)]
                if len(family) < 2:
                    continue
                for figure in FIGURES:
                    compared = _compare(cells, method, point, cost, figure, family, seed)
                    found += [] if compared is None else [compared]
    return tuple(found)


def _alike(p: DesignPoint, q: DesignPoint, cost: Cost) -> bool:
    if p.schedule != q.schedule:
        return False
    if cost == "lora_rank":
        return (p.seq_len, p.train_steps) == (q.seq_len, q.train_steps)
    return (p.lora_rank, p.seq_len) == (q.lora_rank, q.seq_len)


def _compare(
    cells: Cells,
    method: Method,
    point: DesignPoint,
    cost: Cost,
    figure: str,
    family: Sequence[DesignPoint],
    seed: int,
) -> EqualRecall | None:
    def spent(p: DesignPoint, of: Method) -> float:
        if cost == "lora_rank":
            return float(p.lora_rank)
        return float(np.mean([o.gpu_seconds for o in cells[p, of]]))

    sft_cost = spent(point, "sft")
    costs = [spent(p, method) for p in family]
    plain = recall_by_text(cells[point, "sft"], figure)
    own = [recall_by_text(cells[p, method], figure) for p in family]
    texts = sorted(set(plain).intersection(*own))
    if not texts:
        return None

    def needed(texts: Sequence[int]) -> float:
        return cost_at(costs, [_mean(of, texts) for of in own], _mean(plain, texts))

    best = needed(texts)
    low, high = resampled(lambda drawn: needed(drawn) / sft_cost, texts, seed)
    return EqualRecall(
        method,
        figure,
        cost,
        point,
        _mean(plain, texts),
        sft_cost,
        known_cost(best),
        known_cost(best / sft_cost),
        low,
        high,
    )


def resampled(
    cost: Callable[[Sequence[int]], float], texts: Sequence[int], seed: int
) -> tuple[float | None, float | None]:
    """Return the bounds of the central 95 % of a cost over resampled texts (bootstrap).

    cost: of some texts, each as often as it was drawn; 0 or inf where it is out of reach. A bound
    is None there, with a single text, and where all resamples agree, which tells no spread.
    """
    if len(texts) < 2:
        return None, None
    draws = np.random.default_rng(seed).choice(texts, (N_RESAMPLES, len(texts)))
    costs = [cost(draw) for draw in draws.tolist()]
    if math.isclose(min(costs), max(costs), rel_tol=1e-9):
        return None, None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(costs, [tail, 1 - tail], method="nearest")
    return known_cost(low), known_cost(high)


def recall_by_text(runs: Sequence[Observation], figure: str) -> dict[int, float]:
    """Return a figure's mean over the seeds of each text, by sequence_id; see FIGURES."""
    values: dict[int, list[float]] = {}
    for o in runs:
        values.setdefault(o.sequence_id, []).append(FIGURES[figure](o))
    return {text: float(np.mean(own)) for text, own in values.items()}


def _mean(by_text: Mapping[int, float], texts: Sequence[int]) -> float:
    return float(np.mean([by_text[text] for text in texts]))


def known_cost(cost: float) -> float | None:
    """Return a cost, or None where it is out of reach: 0 or inf."""
    return float(cost) if 0 < cost < math.inf else None


def cost_at(costs: Sequence[float], recalls: Sequence[float], recall: float) -> float:
    """Return the least cost at which recall, linear in log(cost) between points, reaches a level.

    0 where the first point is already above it, inf where no point reaches it.
    """
    pairs = sorted(zip(costs, recalls, strict=True))
    if recall < pairs[0][1]:
        return 0.0
    for (c0, y0), (c1, y1) in pairwise(pairs):
        if y0 == recall:
            return c0
        if y0 < recall <= y1:
            return float(math.exp(np.interp(recall, [y0, y1], [math.log(c0), math.log(c1)])))
    return pairs[-1][0] if pairs[-1][1] == recall else math.inf
