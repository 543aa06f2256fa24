"""Adapter that `pmlray size` begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmlray.api.sizing.placement import asks_for_place
from pmlray.config.adapters.adapter_spec import Adapter
from pmlray.config.adapters.start_adapter import StartAdapter, read_start
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource
from pmlray.errors import SpecError

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


def asked_start(request: SizeRequest, model: Model, source: ModelSource) -> StartAdapter | None:
    """Return the adapter to begin with; None where none is asked for.

    SpecError where options also say where adapters sit, ModelError where it cannot be read.
    """
    if request.from_adapter is None:
        return None
    if asks_for_place(request):
        raise SpecError(
            f"--from-adapter gives the sites and the scale, those of {request.from_adapter}: leave"
            " out --placement, --layer, --layers, --alpha and --rslora"
        )
    return read_start(request.from_adapter, model, source)


def place_of(start: StartAdapter) -> Adapter:
    """Return the place in a spec of adapters that begin with one, named by its content."""
    return Adapter(from_adapter=f"sha256-{start.sha256[:16]}")
