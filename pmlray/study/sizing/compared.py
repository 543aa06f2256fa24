"""Placements that a sizing compares: those tried by default, their names, and their search."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Literal

from pmlray.config.adapters.adapter_spec import (
    ALL_LINEAR,
    Adapter,
    AdapterPlace,
    LayerRange,
    NamedAdapter,
)
from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.model_spec import Model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Design, Evaluate, SearchSpec
from pmlray.errors import SpecError
from pmlray.law import module_kind
from pmlray.study.sizing.request import RecordSet, default_layer, doubled_ranks, search_spec
from pmlray.types import DesignPoint, PlannedRun

AUTO = "auto"
# What PEFT adapts by default where a base has separate projections.
_QUERIES_VALUES = ("q_proj", "v_proj")
_LONGEST_NAME = 40
# Parameters per bit of the text of the first two runs at each place.
FIRST_LOADS = (1.0, 0.25)
# Of a module's full name, parts that tell what it belongs to where its own name does not.
_PARENTS = {
    "attention": ("attn", "self_attn", "attention", "self_attention"),
    "mlp": ("mlp", "ffn", "feed_forward"),
}


def auto_places(geometry: Geometry) -> tuple[Adapter, ...]:
    """Return the places that are compared by default, from the base's own module names.

    All linear modules of all layers; queries and values of all layers (else all that attention
    has); the MLP's modules of the upper third; the MLP's last module of one layer two thirds up.
    People deploy them, PEFT loads each, and they tell kinds of modules and depths apart. One that
    the base lacks, or that is another one there, is left out.
    """
    modules, upper = tuple(geometry.modules), default_layer(geometry)
    attention, mlp = _of("attention", modules), _of("mlp", modules)
    named = {module.rpartition(".")[2]: module for module in attention}
    plain = tuple(named[name] for name in _QUERIES_VALUES if name in named)
    top = LayerRange.model_validate({"from": upper, "to": geometry.n_layers - 1})
    tried = [Adapter(target_modules=ALL_LINEAR)]
    if chosen := plain if len(plain) == len(_QUERIES_VALUES) else attention:
        tried.append(Adapter(target_modules=_shortened(chosen, modules)))
    if mlp:
        tried.append(Adapter(target_modules=_shortened(mlp, modules), layers=top))
        tried.append(Adapter(target_modules=_shortened(mlp[-1:], modules), layers=(upper,)))
    found = dict[Placement, Adapter]()
    for place in tried:
        found.setdefault(place.resolve(geometry.n_layers, geometry.modules), place)
    return tuple(found.values())


def _of(part: Literal["attention", "mlp"], modules: Iterable[str]) -> tuple[str, ...]:
    """Return the modules of a layer that belong to its attention or to its MLP."""

    def belongs(module: str) -> bool:
        kind, parents = module_kind(module), module.split(".")[:-1]
        return kind.startswith(part) or any(parent in _PARENTS[part] for parent in parents)

    return tuple(module for module in modules if belongs(module))


def _shortened(chosen: Sequence[str], modules: Sequence[str]) -> str | tuple[str, ...]:
    """Return modules by their last parts, where these are enough to tell them from the others."""
    last = [module.rpartition(".")[2] for module in modules]
    names = tuple(
        short if last.count(short := module.rpartition(".")[2]) == 1 else module
        for module in chosen
    )
    return names[0] if len(names) == 1 else names


def named_places(
    places: Iterable[AdapterPlace], geometry: Geometry
) -> dict[str, tuple[Adapter, Placement]]:
    """Return places under the names that runs and tables show, each with its sites.

    SpecError where two are one and the same, or where fewer than two are given.
    """
    found = dict[str, tuple[Adapter, Placement]]()
    seen = dict[Placement, str]()
    for place in places:
        adapter = as_adapter(place)
        placement = adapter.resolve(geometry.n_layers, geometry.modules)
        if placement in seen:
            raise SpecError(
                f"--placement: {adapter.describe()} is where {seen[placement]} is, with the same"
                " scale: name it once"
            )
        name = _name(adapter, found)
        seen[placement] = name
        found[name] = (adapter, placement)
    if len(found) < 2:
        raise SpecError(
            f"--placement: {', '.join(found) or 'nothing'} is all there is to compare in this base;"
            " name two or more, such as --placement all-linear --placement q_proj,v_proj"
        )
    return found


def as_adapter(place: AdapterPlace) -> Adapter:
    """Return a place in PEFT's terms, also one that a probe names."""
    if isinstance(place, Adapter):
        return place
    modules = "mlp_block" if place.placement == "mlp" else place.placement
    return Adapter(target_modules=modules, layers=(place.layer,))


def _name(adapter: Adapter, taken: Iterable[str]) -> str:
    """Return a name such as `q_proj+v_proj` or `down_proj-20` that is not taken yet."""
    given = adapter.target_modules
    modules = (given,) if isinstance(given, str) else given or ()
    layers = adapter.layers
    if isinstance(layers, LayerRange):
        at = f"-{layers.first}-{layers.last}"
    else:
        at = "" if layers == "all" else "-" + "+".join(map(str, layers))
    told = "+".join(module.rpartition(".")[2] for module in modules) + at
    plain = re.sub(r"[^A-Za-z0-9_+-]", "_", told).lstrip("_+-") or "placement"
    known, n = set(taken), 1
    name = plain[:_LONGEST_NAME]
    while name in known:
        n += 1
        name = f"{plain[: _LONGEST_NAME - 1 - len(str(n))]}-{n}"
    return name


def compared_spec(
    records: RecordSet,
    model: Model,
    places: Mapping[str, tuple[Adapter, int]],
    train_steps: int,
    prompt: Literal["plain", "chat"],
) -> SearchSpec:
    """Return the spec of the search that compares places by one law.

    places: by name, each with its largest rank, for which it is planned as `search_spec` plans
    one place: the largest ranks are of about as many parameters, so that the places' adapters
    overlap in these. The targets are the whole set at each place's largest measured rank. Every
    adapter is also scored on plain prose.
    """
    first, largest = next(iter(places.values()))
    alone = search_spec(records, model, first, largest, train_steps, prompt)
    named = {
        name: NamedAdapter.model_validate({**place.model_dump(), "lora_rank": doubled_ranks(most)})
        for name, (place, most) in places.items()
    }
    ranks = tuple(sorted({r for place in named.values() for r in place.lora_rank or ()}))
    space = alone.space.model_copy(update={"placement": named, "lora_rank": ranks})
    changed = {
        "adapter": None,
        "space": space,
        "design": Design(n_initial=len(named)),
        "evaluate": Evaluate(generate_max_tokens=0, prose=True),
    }
    return SearchSpec.model_validate({**dict(alone), **changed})


def compared_first_runs(search: PreparedSearch) -> tuple[PlannedRun, ...]:
    """Return the runs that a comparison of places begins with, after which costs are known.

    Two at each place, on subsets of different orders, each with as many epochs as the whole set
    gets: those whose adapters have about as many parameters as the subset has bits, and a quarter
    of them, since a run that holds everything with ease tells nothing of its place.
    """
    space, bits_per_token = search.spec.space, math.log2(search.source.geometry.vocab)
    # Few records have fewer lengths than budgets: the longest lengths go with the most steps.
    pairs = zip(reversed(space.seq_len), reversed(space.train_steps), strict=False)
    shares = tuple(pairs)
    runs: list[PlannedRun] = []
    orders = cycle(search.spec.sequences)
    for name in space.placements:
        points = [DesignPoint(r, *share, name) for r in space.ranks_of(name) for share in shares]
        for load in FIRST_LOADS:
            if not points:
                break

            def distance(point: DesignPoint, load: float = load) -> tuple[float, int]:
                params = point.lora_rank * search.params_per_rank_of(point)
                off = abs(math.log(params / (point.seq_len * bits_per_token) / load))
                return round(off, 3), point.train_steps

            chosen = min(points, key=distance)
            points.remove(chosen)
            runs.append(search.plan_run(chosen, "sft", next(orders), search.spec.seeds[0], "law"))
    return tuple({run.run_key: run for run in runs}.values())


def spec_at(spec: SearchSpec, name: str | None) -> SearchSpec:
    """Return a search's spec as that of one of its placements alone; of a search with one place
    (`name` None) itself."""
    if name is None:
        return spec
    named = (spec.space.placement or {})[name]
    adapter = Adapter.model_validate(named.model_dump(exclude={"lora_rank"}))
    ranks = {"placement": None, "lora_rank": spec.space.ranks_of(name)}
    return spec.model_copy(
        update={
            "adapter": adapter,
            "space": spec.space.model_copy(update=ranks),
            "design": spec.design.model_copy(update={"targets": None}),
        }
    )


def search_at(search: PreparedSearch, name: str | None) -> PreparedSearch:
    """Return a search as that of one of its placements alone; see `spec_at`."""
    return replace(search, spec=spec_at(search.spec, name))
