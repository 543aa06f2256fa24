"""Search that measures the law of `pmlray size`: one begun before, or a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pmlray.api.stores import default_store
from pmlray.config import SearchSpec
from pmlray.config.bases.dtype import device_dtype
from pmlray.config.bases.model_spec import Dtype, Model
from pmlray.config.stored_files import SEARCH_FILE, read_stored
from pmlray.errors import StoreError
from pmlray.study.sizing.request import ORDERS, UNSETTLED

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


def begun_with(request: SizeRequest) -> str | None:
    """Return the commit of the base that the stored law, or this sizing, was begun with; None where
    neither is there, or it is of another base."""
    own = None if request.out is None else request.out / "law"
    for folder in (request.law, own):
        if folder is not None and (folder / SEARCH_FILE).is_file():
            model = read_stored(SearchSpec, folder / SEARCH_FILE).model
            if model.id == request.model:
                return model.revision
    return None


def own_search(
    request: SizeRequest, build: Callable[[Model], SearchSpec]
) -> tuple[SearchSpec, Path]:
    """Return the search of these records, and the folder of all results.

    build: returns the spec of a new search of a base. A search already begun continues unchanged,
    whatever its budget and orders of the records, and in its own dtype unless one is requested. A
    new one has the requested dtype, else the device's, and its budget is not set yet. StoreError
    where the requested folder holds another search.
    """

    auto = request.dtype == "auto"

    def in_dtype(dtype: Dtype) -> SearchSpec:
        settled = {"dtype": "auto", "resolved": dtype} if auto else {"dtype": dtype}
        return build(
            Model.model_validate({"id": request.model, "revision": request.revision, **settled})
        )

    of_device = device_dtype(request.profile.gpus_per_pack > 0)
    fresh = in_dtype(of_device if request.dtype == "auto" else request.dtype)
    folder = request.out or default_store(fresh.search_id, request.profile)
    file = folder / "law" / SEARCH_FILE
    if not file.is_file():
        return fresh, folder
    kept = read_stored(SearchSpec, file)
    if _asked(kept) == _asked(fresh) and (auto or kept.model.base_dtype == request.dtype):
        return kept, folder
    if (was := kept.task.prompt_format) != fresh.task.prompt_format:
        raise StoreError(
            f"{folder} holds a sizing with prompts in the {was} format ({kept.search_id}, not"
            f" {fresh.search_id}); give --prompt-format {was}, or choose another --out"
        )
    if kept.task.end != fresh.task.end:
        raise StoreError(
            f"{folder} holds a sizing of before adapters were taught where an answer ends"
            f" ({kept.search_id}, not {fresh.search_id}); choose another --out"
        )
    raise StoreError(
        f"{folder} holds the sizing of other records or with other options"
        f" ({kept.search_id}, not {fresh.search_id}); choose another --out"
    )


def _asked(spec: SearchSpec) -> str:
    """Return the id of a search regardless of its budget and of how its subsets are drawn."""
    return spec.model_copy(update={"budget": UNSETTLED, "sequences": ORDERS}).search_id
