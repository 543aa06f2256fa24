"""Search that measures the law of `pmlray size`: one begun before, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pmlray.api.stores import default_store
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.base_models import ModelSource
from pmlray.config.dtype import device_dtype
from pmlray.config.model_spec import Dtype, Model
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Budget, Probe
from pmlray.config.stored_files import SEARCH_FILE, read_stored
from pmlray.errors import StoreError
from pmlray.memory import TaskSource
from pmlray.study.search.plan import first_cost
from pmlray.study.sizing.request import ORDERS, UNSETTLED, RecordSet, adapter_spec, search_spec
from pmlray.types import DesignPoint

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest

# Settings of former versions, whose search budget, and with it the folder's name, followed from a
# guess of the adapter's cost, with at least so many device-seconds per step. Their subsets were of
# the file's order and of one other.
FORMER_ORDERS = (0, 1)
FORMER_SEARCH_COST = 1.2
FORMER_STEP_SECONDS_GPU, FORMER_STEP_SECONDS_CPU = 0.02, 0.005


def own_search(
    request: SizeRequest,
    records: RecordSet,
    source: ModelSource,
    task: TaskSource,
    probe: Probe,
    largest: int,
    steps: int,
    prompt_format: Literal["plain", "chat"],
) -> tuple[SearchSpec, Path]:
    """Return the search of these records, and the folder of all results.

    largest: rank. A search already begun continues unchanged, whatever its budget and orders of the
    records, and in its own dtype unless one is requested. A new one has the requested dtype, else
    the device's, and its budget is not set yet. StoreError where the requested folder holds another
    search.
    """

    auto = request.dtype == "auto"

    def in_dtype(dtype: Dtype) -> SearchSpec:
        settled = {"dtype": "auto", "resolved": dtype} if auto else {"dtype": dtype}
        model = Model.model_validate({"id": request.model, "revision": request.revision, **settled})
        return search_spec(records, model, probe, largest, steps, prompt_format)

    def stored_as(spec: SearchSpec) -> Path:
        return default_store(PreparedSearch(spec, source, task), request.profile)

    def folders() -> Iterator[Path]:
        if request.out is not None:
            yield request.out
            return
        yield stored_as(fresh)
        for dtype in get_args(Dtype) if auto else (fresh.model.base_dtype,):
            yield stored_as(_as_formerly(in_dtype(dtype), records, source, task, request.profile))

    of_device = device_dtype(request.profile.gpus_per_pack > 0)
    fresh = in_dtype(of_device if request.dtype == "auto" else request.dtype)
    for folder in folders():
        file = folder / "law" / SEARCH_FILE
        if not file.is_file():
            continue
        kept = read_stored(SearchSpec, file)
        if _asked(kept) == _asked(fresh) and (auto or kept.model.base_dtype == request.dtype):
            return kept, folder
        if request.out is not None:
            raise StoreError(
                f"{folder} holds the sizing of other records or with other options"
                f" ({kept.search_id}, not {fresh.search_id}); choose another --out"
            )
    return fresh, request.out or stored_as(fresh)


def _asked(spec: SearchSpec) -> str:
    """Return the id of a search regardless of its budget and of how its subsets are drawn."""
    return spec.model_copy(update={"budget": UNSETTLED, "sequences": ORDERS}).search_id


def _as_formerly(
    spec: SearchSpec,
    records: RecordSet,
    source: ModelSource,
    task: TaskSource,
    profile: ClusterProfile,
) -> SearchSpec:
    """Return the search as former versions defined it: by a guessed budget and FORMER_ORDERS."""
    gpu, space = profile.gpus_per_pack > 0, spec.space
    point = DesignPoint(1, space.seq_len[-1], space.train_steps[-1])
    training = PreparedSearch(adapter_spec(spec, records, point), source, task)
    in_a_step = min(spec.recipe.batch_size, len(records.pairs))
    tokens = in_a_step * records.positions_per_record
    per_step = first_cost(training, gpu).seconds_per_token * tokens
    least = FORMER_STEP_SECONDS_GPU if gpu else FORMER_STEP_SECONDS_CPU
    seconds = point.train_steps * max(per_step, least)
    budget = Budget(gpu_seconds=round(FORMER_SEARCH_COST * seconds, 1))
    return spec.model_copy(update={"budget": budget, "sequences": FORMER_ORDERS})
