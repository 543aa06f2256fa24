"""Where the adapters of observations sat, from their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmlray.errors import DataError
from pmlray.law.placements import Placement, Site, placement_at
from pmlray.rebuild import MALFORMED
from pmlray.types import Observation


def observed_placements(observations: Sequence[Observation]) -> list[Placement] | None:
    """Return the placement of each observation; None where all are of one.

    Observations of before provenance told the sites count as those that do and have as many
    parameters per rank, and else as a placement of their own, of which nothing more is known.
    DataError where the provenance of one cannot be read.
    """
    told = {o.run_key: found for o in observations if (found := _told(o)) is not None}
    by_params = {placement.params_per_rank: placement for placement in told.values()}
    placements = []
    for o in observations:
        placement = told.get(o.run_key)
        if placement is None:
            # Observations that were made by hand have not even that.
            per_rank = float(o.provenance.get("adapter_params_per_rank") or 1.0)
            untold = Placement("placement not told", (Site("other", None, per_rank),))
            placement = by_params.setdefault(per_rank, untold)
        placements.append(placement)
    return placements if len(set(placements)) > 1 else None


def placement_from_facts(found: Mapping[str, Any]) -> Placement:
    """Return the placement that an observation's provenance tells of; raises one of MALFORMED."""
    per_module: Mapping[str, int] = found["params_per_rank"]
    sites = [
        (layer, module, float(params))
        for layer in found["layers"]
        for module, params in per_module.items()
    ]
    return placement_at(found["name"], sites, found["n_layers"])


def _told(o: Observation) -> Placement | None:
    found: Mapping[str, Any] | None = o.provenance.get("placement")
    if found is None or "params_per_rank" not in found:
        return None
    try:
        return placement_from_facts(found)
    except MALFORMED as error:
        raise DataError(
            f"run_key {o.run_key}: the placement in its provenance cannot be read ({error!r})"
        ) from error
