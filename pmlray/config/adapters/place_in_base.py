"""Where adapters sit in a base, and why they cannot, for a base of any family."""

from __future__ import annotations

from pmlray.config.adapters.adapter_spec import Adapter, AdapterPlace
from pmlray.config.adapters.placement import MLP_BLOCK, Placement
from pmlray.config.adapters.start_adapter import StartAdapter
from pmlray.config.bases.geometry import Geometry
from pmlray.config.load import Where
from pmlray.config.search_spec import SearchSpec
from pmlray.errors import SpecError


def placement_in(place: AdapterPlace, geometry: Geometry, key: str | None = None) -> Placement:
    """Return the sites in a base; SpecError, beginning with a key of the spec, where it lacks a
    module or a layer, or where a module that it has cannot be adapted.

    key: that of the place in its file, by default `adapter` or `probe`.
    """
    key = key or ("adapter" if isinstance(place, Adapter) else "probe")
    try:
        placement = place.resolve(geometry.n_layers, geometry.modules, key)
        _check_modules(place, placement, geometry, key)
    except SpecError as error:
        named = place.named_modules if isinstance(place, Adapter) else ()
        # That there is no MLP is said already where the paper's block is asked for.
        found = [geometry.refusal(module) for module in named if module != MLP_BLOCK]
        raise SpecError(". ".join([str(error), *(why for why in found if why)])) from error
    return placement


def check_places(
    spec: SearchSpec, geometry: Geometry, where: Where, start: StartAdapter | None = None
) -> None:
    """Check that the base has the adapters' sites, and that they can have the ranks; SpecError
    otherwise, also where two names are of one placement. start: what every run begins with."""
    names = dict[Placement, str | None]()
    ranks = spec.space.lora_rank
    if start is not None and ranks[0] < start.lora_rank:
        raise SpecError(
            f"{where(_key_of_ranks(spec, None, where))}: lora_rank is down to {ranks[0]}, but the"
            f" adapter that runs begin with has rank {start.lora_rank}: a smaller rank would leave"
            " a part of it out"
        )
    for name, place in spec.places.items():
        key = None if name is None else f"space.placement.{name}"
        try:
            placement = start.placement if start else placement_in(place, geometry, key)
        except SpecError as error:
            # It begins with the key.
            at = str(error).split(maxsplit=1)[0].rstrip(":")
            raise SpecError(f"{where(at)}: {error}") from error
        if (first := names.setdefault(placement, name)) != name:
            raise SpecError(
                f"{where(f'space.placement.{name}')}: space.placement.{name} is where"
                f" space.placement.{first} is, with the same scale: leave one of them out"
            )
        most = spec.space.ranks_of(name)[-1]
        if (why := placement.rank_beyond(most, geometry.adaptable)) is not None:
            at = _key_of_ranks(spec, name, where)
            of = "" if name is None else f" at {name}"
            raise SpecError(f"{where(at)}: lora_rank is up to {most}{of}, but {why}")


def _key_of_ranks(spec: SearchSpec, placement: str | None, where: Where) -> str:
    """Return the key that the ranks of a placement stand at."""
    # A comparison has points in place of a space.
    in_space = where("space") != where("")
    return f"space.{spec.space.key_of_ranks(placement)}" if in_space else "points"


def _check_modules(place: AdapterPlace, placement: Placement, geometry: Geometry, key: str) -> None:
    """Raise SpecError where the base's layers lack a module that every Llama's have."""
    lacking = [module for module in placement.modules if module not in geometry.adaptable]
    if lacking:
        of = "target_modules" if isinstance(place, Adapter) else "placement"
        raise SpecError(
            f"{key}.{of}: the base's layers have no {', '.join(lacking)}; they have"
            f" {', '.join(geometry.adaptable)}, which adapter.target_modules takes"
        )
