"""Places that a sizing may put its adapter at: those asked for, and what each is planned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pmlray.api.sizing.placement import asked_place
from pmlray.config.adapters.adapter_spec import Adapter, AdapterPlace
from pmlray.config.adapters.placement import Placement as Sites
from pmlray.config.adapters.start_adapter import StartAdapter
from pmlray.config.bases.geometry import Geometry
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import SpecError
from pmlray.study.sizing.compared import AUTO, as_adapter, auto_places, named_places
from pmlray.study.sizing.request import RecordSet, check_capacity, largest_rank
from pmlray.types import DesignPoint

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


@dataclass(frozen=True)
class PlaceOption:
    """Place where the adapter may sit.

    `name`: in the law's search, None where that has one place; `training` trains the adapter
    there; `point`: of l tokens and T steps with the largest rank that the search is planned for;
    `limit`: the largest rank allowed.
    """

    name: str | None
    training: PreparedSearch
    point: DesignPoint
    limit: int

    @property
    def own_point(self) -> DesignPoint:
        """The point in the training, which has one place."""
        return replace(self.point, placement=None)

    def to_json(self) -> dict[str, Any]:
        """Return where the adapter sits and its largest rank, as JSON: a probe as it is, or PEFT's
        terms."""
        spec = self.training.spec
        if spec.probe is not None:
            said: dict[str, Any] = {"probe": spec.probe.model_dump()}
        else:
            said = {"adapter": self.training.placement.to_json()}
        return {
            **said,
            "placement": self.training.describe_place(),
            "params_per_rank": self.training.params_per_rank,
            "largest_rank": self.limit,
        }


def split_placements(given: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the one place that is asked for, or the places to compare: `auto`, or several."""
    if len(given) == 1 and given[0] != AUTO:
        return given[0], ()
    return None, tuple(given)


def compared_places(request: SizeRequest, geometry: Geometry) -> dict[str, tuple[Adapter, Sites]]:
    """Return the places to compare by their names, each with its sites in the base.

    `auto` stands for those of `auto_places`; alpha and rslora hold for each. SpecError, naming the
    option, where the base lacks one.
    """
    if request.layer is not None or request.layers is not None:
        option = "--layer" if request.layer is not None else "--layers"
        raise SpecError(
            f"{option} is of one placement: of several give each its own, as in --placement"
            " q_proj,v_proj@4-9"
        )
    places: list[AdapterPlace] = []
    for said in request.compared:
        alone = replace(request, placement=said, compared=())
        if said != AUTO:
            places.append(asked_place(alone, geometry))
            continue
        # The scale is read as that of any one place.
        like = as_adapter(asked_place(replace(alone, placement="all-linear"), geometry))
        scale = {"alpha": like.alpha, "use_rslora": like.use_rslora}
        places += [place.model_copy(update=scale) for place in auto_places(geometry)]
    return named_places(places, geometry)


def largest_ranks(
    request: SizeRequest,
    records: RecordSet,
    places: Mapping[str | None, tuple[AdapterPlace, Sites]],
    geometry: Geometry,
    start: StartAdapter | None = None,
) -> dict[str | None, int]:
    """Return the largest rank that the search is planned for at each place.

    start: the adapter to begin with, whose rank is the smallest. SpecError where --max-rank is
    smaller, or more than the one place can have, DataError where the largest
    rank cannot hold the records.
    """
    found = dict[str | None, int]()
    for name, (_, sites) in places.items():
        begins_with = None if start is None else start.lora_rank
        largest = request.max_rank or largest_rank(records, geometry, sites, begins_with)
        if begins_with is not None and largest < begins_with:
            raise SpecError(
                f"--max-rank is {largest}, but the adapter to begin with has rank {begins_with}: a"
                " smaller rank would leave a part of it out"
            )
        if len(places) > 1:
            largest = min(largest, sites.largest_rank(geometry.adaptable))
        if (why := sites.rank_beyond(largest, geometry.adaptable)) is not None:
            raise SpecError(f"--max-rank is {largest}, but {why}")
        check_capacity(records, largest, sites.params_per_rank(geometry.adaptable))
        found[name] = largest
    return found
