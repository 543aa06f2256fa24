"""Law of an earlier search that a sizing uses: whether it fits the request, and its fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.records.prompts import default_format
from pmlray.api.sizing.placement import asked_place, asks_for_place
from pmlray.api.sizing.places import PlaceOption, compared_places
from pmlray.api.stores import open_store
from pmlray.config import SearchSpec
from pmlray.config.adapters.adapter_spec import AdapterPlace, Probe
from pmlray.config.adapters.placement import Placement as Sites
from pmlray.config.adapters.start_adapter import StartAdapter
from pmlray.config.bases.geometry import Geometry
from pmlray.config.bases.models import ModelSource
from pmlray.errors import SpecError
from pmlray.law import LawSummary
from pmlray.study.findings.fitted_runs import fit_observations
from pmlray.study.sizing.compared import AUTO
from pmlray.study.sizing.request import sized_spec
from pmlray.types import Observation

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


@dataclass(frozen=True)
class LawAtHand:
    """Law with the records' own size as its target, and the runs that it was fitted to."""

    store: Path
    summary: LawSummary
    observations: tuple[Observation, ...]


def fit_for(
    spec: SearchSpec, options: Sequence[PlaceOption], observations: Sequence[Observation]
) -> LawSummary | None:
    """Fit a search's law for a set of records; None where its runs carry none.

    Its targets are the ranks up to the largest on the whole set; where places are compared, the
    whole set at each place's largest measured rank.
    """
    if len(options) == 1:
        return fit_observations(sized_spec(spec, options[0].point), observations)
    open_targets = spec.design.model_copy(update={"targets": None})
    return fit_observations(spec.model_copy(update={"design": open_targets}), observations)


def stored_law(store: Path, spec: SearchSpec, options: Sequence[PlaceOption]) -> LawAtHand:
    """Return the law in a store, fitted for these records; SpecError where its runs carry none."""
    observations = open_store(store.absolute())[1].observations()
    summary = fit_for(spec, options, observations)
    if summary is None:
        raise SpecError(
            f"--law {store}: its {len(observations)} runs are too few for a law; continue its"
            " search, or leave --law out"
        )
    return LawAtHand(store, summary, observations)


def law_spec(request: SizeRequest, source: ModelSource) -> SearchSpec:
    """Return the spec of the stored law's search; SpecError when it does not fit the request."""
    assert request.law is not None
    spec, store = open_store(request.law.absolute())
    where = f"--law {request.law}"
    if spec.task.kind != "records":
        raise SpecError(
            f"{where}: its search memorised {spec.task.kind}, whose law does not hold for records;"
            " give the store of a records search, or leave --law out"
        )
    identities = {o.provenance.get("model") for o in store.observations()}
    if identities - {source.identity}:
        raise SpecError(
            f"{where}: its law is of {spec.model.id}, not of {request.model}; give that --model, or"
            " leave --law out"
        )
    given = {
        "--dtype": (None if request.dtype == "auto" else request.dtype, spec.model.base_dtype),
        "--prompt-format": (request.prompt_format, spec.task.prompt_format),
    }
    for option, (asked, measured) in given.items():
        if asked is not None and asked != measured:
            raise SpecError(
                f"{where}: its law was measured with {option} {measured}, not {asked}; leave"
                f" {option} out, or leave --law out"
            )
    if (request.prompt_format, spec.task.prompt_format) == (None, "plain") and default_format(
        request.records, request.model, source
    ) == "chat":
        raise SpecError(
            f"{where}: its law was measured with plain prompts, and these records are"
            f" conversations, which the chat template of {request.model} renders by default; give"
            " --prompt-format plain to train and ask them as plain text, or leave --law out"
        )
    if request.train_steps is not None and request.train_steps not in spec.space.train_steps:
        known = ", ".join(map(str, spec.space.train_steps))
        raise SpecError(
            f"{where}: its law was measured at {known} steps, not at {request.train_steps}; use one"
            " of those as --steps, or leave --law out"
        )
    if request.prefer == "prose" and not spec.evaluate.prose:
        raise SpecError(
            f"{where}: its runs did not measure an adapter's effect on prose (evaluate.prose), so"
            " that --prefer prose has nothing to go by; prefer another measure, or leave --law out"
        )
    return spec


def check_law_start(law: Path, spec: SearchSpec, start: StartAdapter | None) -> None:
    """Check that a law is of runs that began as is asked; SpecError otherwise.

    law: its store; spec: of its search; start: the adapter to begin with, None for none.
    """
    observations = open_store(law.absolute())[1].observations()
    begun = {(o.provenance.get("from_adapter") or {}).get("sha256") for o in observations}
    own = None if start is None else start.sha256
    from_adapter = spec.adapter is not None and spec.adapter.from_adapter is not None
    if begun - {own} or from_adapter != (start is not None):
        how = "with an adapter" if from_adapter else "from scratch"
        raise SpecError(
            f"--law {law}: its runs began {how}, and its law holds for such runs alone; give the"
            " same by --from-adapter, leave that out where there was none, or leave --law out"
        )


def places_of_law(
    request: SizeRequest, spec: SearchSpec, geometry: Geometry
) -> dict[str | None, tuple[AdapterPlace, Sites]]:
    """Return the law's places that adapters are asked for at, by the name in its search: by default
    all. SpecError where it has none of those asked for."""
    of_law = {
        name: (place, place.resolve(geometry.n_layers, geometry.modules))
        for name, place in spec.places.items()
    }
    several = spec.space.placement is not None
    if request.compared and not several:
        raise SpecError(
            f"--law {request.law}: its law was measured at {spec.describe_places()} alone and tells"
            " nothing of other places; leave --placement out, or give the store of a search with"
            " space.placement"
        )
    if request.compared == (AUTO,) or not (request.compared or asks_for_place(request)):
        return of_law
    if request.compared:
        asked = compared_places(request, geometry).values()
    else:
        like = spec.probe if isinstance(spec.probe, Probe) else None
        place = asked_place(request, geometry, like)
        asked = [(place, place.resolve(geometry.n_layers, geometry.modules))]
    names = {sites: name for name, (_, sites) in of_law.items()}
    found = dict[str | None, tuple[AdapterPlace, Sites]]()
    for place, sites in asked:
        if sites not in names:
            raise SpecError(
                f"--law {request.law}: its law was measured at {spec.describe_places()}, not at"
                f" {place.describe()}; leave the options of the placement out, or leave --law out"
            )
        found[names[sites]] = of_law[names[sites]]
    return found
