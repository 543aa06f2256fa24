"""Law of a search at its placements, and what an adapter at one of them has of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pmlray.config.bases.models import KNOWN_MODELS
from pmlray.config.search_spec import SearchSpec
from pmlray.law import LawSummary, Placement, PlaceWorth, placement_worths
from pmlray.types import DesignPoint, Observation


def measured_placements(spec: SearchSpec, runs: Sequence[Observation]) -> tuple[str, ...]:
    """Return the names of the placements that have runs, in the order of the spec; none for a
    search with one place, whose figures and tables need no names."""
    if len(spec.space.placements) < 2:
        return ()
    seen = {o.point.placement for o in runs}
    return tuple(name for name in spec.space.placements if name is not None and name in seen)


def fitted_places(
    law: LawSummary, fitted: Iterable[Observation]
) -> Mapping[str | None, Placement | None]:
    """Return the placement of a law by the name that its runs' points have: None in place of it for
    a law of one placement, whose ranks are its own.

    fitted: the runs that the law was fitted to.
    """
    data, names = law.unseen.data, {o.point.placement for o in fitted}
    if not data.several_placements or names == {None}:
        return dict.fromkeys(names)
    return {placement.name: placement for placement in data.placements}


def worths_of(law: LawSummary | None) -> Mapping[str, PlaceWorth]:
    """Return what a parameter is worth by placement, the reference first; none without a law of
    several placements."""
    if law is None or not law.unseen.data.several_placements:
        return {}
    return {w.name: w for w in placement_worths(law.unseen.data, law.average_samples)}


def params_per_rank(spec: SearchSpec, o: Observation) -> int | None:
    """Return the adapter parameters per unit of rank.

    As the run recorded them, else of a base whose sizes are known by name, else None (runs of older
    versions, tables of measurements).
    """
    if (recorded := o.provenance.get("adapter_params_per_rank")) is not None:
        return int(recorded)
    geometry = KNOWN_MODELS.get(spec.model.id)
    if geometry is None:
        return None
    placement = spec.places[o.point.placement].resolve(geometry.n_layers, geometry.modules)
    return placement.params_per_rank(geometry.adaptable)


def rank_of(point: DesignPoint) -> str:
    """Return a point's rank in words, with its placement where it has one."""
    at = "" if point.placement is None else f" at {point.placement}"
    return f"rank {point.lora_rank}{at}"
