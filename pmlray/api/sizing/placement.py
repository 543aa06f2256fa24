"""Place of a sizing's adapter, as the options of `pmlray size` say it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from pmlray.config.adapters.adapter_spec import (
    PAPERS_BLOCK,
    Adapter,
    AdapterPlace,
    LayerRange,
    Probe,
)
from pmlray.config.adapters.place_in_base import placement_in
from pmlray.config.bases.geometry import Geometry
from pmlray.errors import SpecError
from pmlray.study.sizing.request import default_layer

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest

# Modules whose adapter sits at one layer unless the options say otherwise; the paper's block has
# two names.
AT_ONE_LAYER: dict[str, Literal["mlp", "down_proj"]] = {
    "mlp": "mlp",
    PAPERS_BLOCK: "mlp",
    "down_proj": "down_proj",
}
Layers = Literal["all"] | tuple[int, ...] | LayerRange


def asked_place(
    request: SizeRequest, geometry: Geometry, like: Probe | None = None
) -> AdapterPlace:
    """Return where the adapter is to sit; SpecError, naming the option, where the base lacks that.

    All layers are meant where the options name none, but for the modules of AT_ONE_LAYER. like:
    gives the module and the layer that are left open; by default `down_proj`, two thirds up.
    """
    like = like or Probe(placement="down_proj", layer=default_layer(geometry))
    try:
        place = _place(request, like)
        placement_in(place, geometry)
    except ValidationError as error:
        first = error.errors()[0]
        # It begins with the key as it stands within `adapter`.
        said = first["msg"].replace("Value error, ", "adapter.", 1)
        if first["type"] != "value_error":
            said = f"--alpha is {Adapter.model_fields['alpha'].description} (got {request.alpha!r})"
        raise SpecError(_by_option(said, request)) from error
    except SpecError as error:
        raise SpecError(_by_option(str(error), request)) from error
    return place


def asks_for_place(request: SizeRequest) -> bool:
    """Return whether any option says where the adapter is to sit."""
    said = (request.placement, request.layer, request.layers, request.alpha)
    return bool(request.rslora or request.compared) or any(x is not None for x in said)


def _place(request: SizeRequest, like: Probe) -> AdapterPlace:
    name = like.placement if request.placement is None else request.placement
    if "@" in name:
        request, name = _with_layers(request, name)
    layers = _layers(request)
    if name in AT_ONE_LAYER and layers is None:
        layers = (like.layer,)
    scaled = request.alpha is not None or request.rslora
    if name in AT_ONE_LAYER and not scaled and isinstance(layers, tuple) and len(layers) == 1:
        return Probe(placement=AT_ONE_LAYER[name], layer=layers[0])
    names = (PAPERS_BLOCK if name == "mlp" else name).split(",")
    return Adapter(
        target_modules=names[0] if len(names) == 1 else tuple(names),
        layers="all" if layers is None else layers,
        alpha="1r" if request.alpha is None else _alpha(request.alpha),
        use_rslora=request.rslora,
    )


def _with_layers(request: SizeRequest, said: str) -> tuple[SizeRequest, str]:
    """Split `MODULES@LAYERS`, which says what --layers says; SpecError where both are given."""
    name, _, layers = said.partition("@")
    if request.layer is not None or request.layers is not None:
        raise SpecError(f"--placement {said} and --layers both name layers: give one of them")
    return replace(request, layers=layers), name


def _layers(request: SizeRequest) -> Layers | None:
    """Return the layers that are asked for; None where they are left open."""
    said = request.layers
    if request.layer is not None and said is not None:
        raise SpecError("--layer and --layers both say where the adapter sits: give one of them")
    if request.layer is not None and request.layer < 0:
        raise SpecError(f"--layer is {request.layer}; layers are counted from 0")
    if request.layer is not None:
        return (request.layer,)
    if said is None or said == "all":
        return said
    if found := re.fullmatch(r"(\d+)-(\d+)", said):
        first, last = map(int, found.groups())
        return LayerRange.model_validate({"from": first, "to": last})
    if re.fullmatch(r"\d+(,\d+)*", said):
        return tuple(map(int, said.split(",")))
    raise SpecError(
        f"--layers is {said!r}; it is `all`, layers such as 3,7, or from the first to the last, as"
        " in 4-9"
    )


def _alpha(said: str) -> float | str:
    return float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else said


def _by_option(said: str, request: SizeRequest) -> str:
    """Return a complaint about a spec's key as one about the option that gave it."""
    layers = "--layers" if request.layers is not None else "--layer"
    options = {
        "adapter.target_modules": "--placement",
        "probe.placement": "--placement",
        "adapter.layers": layers,
        "probe.layer": layers,
        "adapter.alpha": "--alpha",
    }
    for key, option in options.items():
        said = said.replace(key, option)
    return said.replace("the base", request.model)
