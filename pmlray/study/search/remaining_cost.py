"""Cost of what a search would still measure if its budget had no end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from pmlray.config.search_spec import SearchSpec
from pmlray.design import CostModel
from pmlray.law import Law
from pmlray.study.search.memft_schedule import compared_points
from pmlray.study.search.plan import cost_terms
from pmlray.types import FailedRun, Observation, Phase


def learnt(cost: CostModel, observations: Iterable[Observation]) -> CostModel:
    """The cost model with the rate of measured runs; itself without any."""
    return cost.learn((o.point, o.charged_steps, o.gpu_seconds) for o in observations)


def measured_cost(spec: SearchSpec, observations: Iterable[Observation]) -> CostModel:
    """A search's cost model from its runs alone; not `measured` before there are any."""
    return learnt(CostModel(math.nan, **cost_terms(spec)), observations)


def open_seconds(
    spec: SearchSpec,
    phase: Phase,
    observations: Sequence[Observation],
    failures: Iterable[FailedRun],
    law: Law | None,
    cost: CostModel,
) -> float:
    """gpu_seconds of the phase's runs that have not ended, each by itself: more than in packs,
    where runs share steps. inf while no run tells the rate, or no law where MemFT's runs go."""
    if not cost.measured:
        return math.inf
    if phase == "law":
        ended = Counter(o.point for o in observations if o.phase == "law")
        # What machines failed is measured again.
        ended.update(f.point for f in failures if not f.infrastructure)
        replicates = len(spec.replicates())
        return sum(
            max(0, replicates - ended[cell]) * cost.predict(cell) for cell in spec.space.points()
        )
    if law is None or spec.memft is None:
        return math.inf
    base_loss = median(o.base_loss for o in observations if o.phase == "law")
    # A run of the law that stopped early is no partner: it had fewer steps.
    done = {
        (o.point, o.method, o.sequence_id, o.seed)
        for o in observations
        if o.phase == "memft" or not o.stopped_early
    }
    return sum(
        cost.predict(point)
        for point, sequence_id, seed in compared_points(spec, law, base_loss)
        for method in ("sft", *spec.memft.methods)
        if (point, method, sequence_id, seed) not in done
    )
