"""Where adapters sit in a base, and why they cannot, for a base of any family."""

from __future__ import annotations

from pmlray.config.adapter_spec import Adapter, AdapterPlace
from pmlray.config.bases.geometry import Geometry
from pmlray.config.placement import MLP_BLOCK, Placement
from pmlray.errors import SpecError


def placement_in(place: AdapterPlace, geometry: Geometry) -> Placement:
    """Return the sites in a base; SpecError, beginning with a key of the spec, where it lacks a
    module or a layer, or where a module that it has cannot be adapted."""
    try:
        placement = place.resolve(geometry.n_layers, geometry.modules)
        _check_modules(place, placement, geometry)
    except SpecError as error:
        named = place.named_modules if isinstance(place, Adapter) else ()
        # That there is no MLP is said already where the paper's block is asked for.
        found = [geometry.refusal(module) for module in named if module != MLP_BLOCK]
        raise SpecError(". ".join([str(error), *(why for why in found if why)])) from error
    return placement


def _check_modules(place: AdapterPlace, placement: Placement, geometry: Geometry) -> None:
    """Raise SpecError where the base's layers lack a module that every Llama's have."""
    lacking = [module for module in placement.modules if module not in geometry.adaptable]
    if lacking:
        key = "adapter.target_modules" if isinstance(place, Adapter) else "probe.placement"
        raise SpecError(
            f"{key}: the base's layers have no {', '.join(lacking)}; they have"
            f" {', '.join(geometry.adaptable)}, which adapter.target_modules takes"
        )
