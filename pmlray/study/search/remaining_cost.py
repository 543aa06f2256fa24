"""Cost of the runs that a search has yet to measure, regardless of its budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

from pmlray.config.bases.models import known_geometry
from pmlray.config.search_spec import SearchSpec
from pmlray.design import CostModel, PlaceWork
from pmlray.study.search.memft_schedule import LawAt, compared_points
from pmlray.study.search.plan import cost_from_sizes, cost_terms
from pmlray.types import FailedRun, Observation, Phase


def learnt(cost: CostModel, observations: Iterable[Observation]) -> CostModel:
    """Return the cost model at the rate of measured runs; without any, unchanged."""
    return cost.learn((o.point, o.charged_steps, o.gpu_seconds) for o in observations)


def measured_cost(spec: SearchSpec, observations: Iterable[Observation]) -> CostModel:
    """Return a search's cost model from its runs alone; not `measured` before there are any.

    Where this machine does not know the base's sizes, or the sites of an adapter to begin with, all
    ranks and placements count as equal work.
    """
    begins_with = spec.adapter is not None and spec.adapter.from_adapter is not None
    if not begins_with and (geometry := known_geometry(spec.model.id)) is not None:
        sites = {n: p.resolve(geometry.n_layers, geometry.modules) for n, p in spec.places.items()}
        blank = replace(cost_from_sizes(spec, geometry, sites, 1.0), seconds_per_token=math.nan)
    else:
        alike = dict.fromkeys(spec.space.placement or (), PlaceWork(1.0, 0.0, 0))
        blank = CostModel(math.nan, **cost_terms(spec), places=alike)
    return learnt(blank, observations)


def open_seconds(
    spec: SearchSpec,
    phase: Phase,
    observations: Sequence[Observation],
    failures: Iterable[FailedRun],
    law: LawAt | None,
    cost: CostModel,
) -> float:
    """Return the gpu_seconds of the phase's runs that have not ended, each priced on its own.

    That is more than in packs, where runs share steps. inf while no rate is measured, or, for
    MemFT's runs, while there is no law to place them.
    """
    if not cost.measured:
        return math.inf
    if phase == "law":
        ended = Counter(o.point for o in observations if o.phase == "law")
        # Runs that failed because of a machine are measured again.
        ended.update(f.point for f in failures if not f.infrastructure)
        replicates = len(spec.replicates())
        return sum(
            max(0, replicates - ended[cell]) * cost.predict(cell) for cell in spec.space.points()
        )
    if law is None or spec.memft is None:
        return math.inf
    base_loss = median(o.base_loss for o in observations if o.phase == "law")
    # A run of the law that stopped early cannot be in a pair: it had fewer steps.
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
