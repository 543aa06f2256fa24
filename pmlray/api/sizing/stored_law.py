"""Stored law that `pmlray size --law` uses: whether it is one of the runs that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.sizing.placement import asked_place, asks_for_place
from pmlray.api.stores import open_store
from pmlray.config import SearchSpec
from pmlray.config.bases.models import ModelSource
from pmlray.config.start_adapter import StartAdapter
from pmlray.errors import SpecError

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


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
    _check_same_place(request, spec, source, where)
    if request.train_steps is not None and request.train_steps not in spec.space.train_steps:
        known = ", ".join(map(str, spec.space.train_steps))
        raise SpecError(
            f"{where}: its law was measured at {known} steps, not at {request.train_steps}; use one"
            " of those as --steps, or leave --law out"
        )
    return spec


def _check_same_place(
    request: SizeRequest, spec: SearchSpec, source: ModelSource, where: str
) -> None:
    """Check that adapters are asked for where the law's are; SpecError otherwise."""
    begins_with = spec.adapter is not None and spec.adapter.from_adapter is not None
    if not asks_for_place(request) or begins_with:
        return
    geometry, own = source.geometry, spec.place
    asked = asked_place(request, geometry, spec.probe)
    if asked.resolve(geometry.n_layers, geometry.modules) != own.resolve(
        geometry.n_layers, geometry.modules
    ):
        raise SpecError(
            f"{where}: its law was measured at {own.describe()}, not at {asked.describe()}; leave"
            " the options of the placement out, or leave --law out"
        )


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
