"""What observations and laws are told of where an adapter sits."""

from __future__ import annotations

from typing import Any

from pmlray.config.prepared_search import PreparedSearch
from pmlray.law import Placement, placement_from_facts
from pmlray.types import DesignPoint


def placement_facts(search: PreparedSearch, point: DesignPoint) -> dict[str, Any]:
    """Return the sites of a point's adapter, with a name and what a law of several placements
    needs."""
    geometry, placement = search.source.geometry, search.placement_of(point)
    return {
        **placement.to_json(),
        "name": search.place_name(point),
        "n_layers": geometry.n_layers,
        "params_per_rank": {m: sum(geometry.adaptable[m]) for m in placement.modules},
    }


def law_placements(search: PreparedSearch) -> dict[str, Placement]:
    """Return a search's named placements as a law knows them from its observations; none for a
    search with one place."""
    corners = search.spec.space.corners()
    return {
        point.placement: placement_from_facts(placement_facts(search, point))
        for point in corners
        if point.placement is not None
    }
