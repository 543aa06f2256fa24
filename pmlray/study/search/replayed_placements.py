"""Placements of a replayed table, beside those of the search that replays it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import DataError
from pmlray.study.search.replay_table import PARAMS, ReplayTable
from pmlray.types import DesignPoint


def table_for(search: PreparedSearch, table: ReplayTable, where: str) -> ReplayTable:
    """Return a table by the points of a search: a search with one place takes rows of any one.

    Raises DataError, beginning with `where`, where the table has other placements.
    """
    wanted, found = set(search.spec.space.placements), table.placements
    if wanted == {None}:
        if len(found) > 1:
            raise DataError(
                f"{where}: its rows are of the placements {_named(found)}, but the search has one"
                " place: give it space.placement with these names"
            )
        rows = {(replace(p, placement=None), q, s): row for (p, q, s), row in table.rows.items()}
        return replace(table, rows=rows)
    if None in found:
        raise DataError(
            f"{where}: rows without a placement, but the search has the placements"
            f" {_named(wanted)}: give each row the name of one in a column placement, and its"
            f" adapter's parameters in {PARAMS}"
        )
    if lacking := wanted - found:
        raise DataError(
            f"{where}: no rows of the placement {_named(lacking)}; it has {_named(found)}"
        )
    for (point, _, _), row in table.rows.items():
        if point.placement not in wanted or PARAMS not in row:
            continue
        own = point.lora_rank * search.params_per_rank_of(point)
        if row[PARAMS] != own:
            raise DataError(
                f"{where}: an adapter of rank {point.lora_rank} at {point.placement} has"
                f" {row[PARAMS]:g} parameters, but {own} where space.placement puts it: these are"
                " other modules or layers"
            )
    return table


def replayed_place(search: PreparedSearch, point: DesignPoint) -> dict[str, Any]:
    """Return what provenance tells of where a point's adapter sits; nothing in a search with one
    place."""
    if point.placement is None:
        return {}
    per_rank = search.params_per_rank_of(point)
    return {
        "adapter_params_per_rank": per_rank,
        PARAMS: point.lora_rank * per_rank,
        "placement": placement_facts(search, point),
    }


def _named(placements: set[str | None] | frozenset[str | None]) -> str:
    return ", ".join(sorted(name for name in placements if name is not None))
