"""The search that `pmlray size` measures its law by: the one begun before, or a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pmlray.cli.driver import SPEC_FILE, default_store
from pmlray.config import ClusterProfile, SearchSpec
from pmlray.config.dtype import device_dtype
from pmlray.config.kept import read_kept
from pmlray.config.model_spec import Dtype, Model
from pmlray.config.models import ModelSource
from pmlray.config.prepared import PreparedSearch
from pmlray.config.search_spec import Budget, Probe
from pmlray.memory import TaskSource
from pmlray.study.plan import first_cost
from pmlray.study.size import SEARCH_COST, RecordSet, adapter_spec, search_spec
from pmlray.types import DesignPoint

if TYPE_CHECKING:
    from pmlray.cli.size_plan import SizeRequest

# A small model's step is bound by its overhead, not by its arithmetic; device-seconds.
LEAST_STEP_SECONDS_GPU, LEAST_STEP_SECONDS_CPU = 0.02, 0.005


def own_search(
    request: SizeRequest,
    records: RecordSet,
    source: ModelSource,
    task: TaskSource,
    probe: Probe,
    largest: int,
    steps: int,
    prompt_format: Literal["plain", "chat"],
) -> SearchSpec:
    """The search of these records, in the dtype asked for; without one, in that of the search that
    was begun before, else the device's. largest: rank.

    A law's budget, and with it the search's id, follows what a step is guessed to cost, and so its
    dtype: a search that was begun is looked for in each.
    """

    def in_dtype(dtype: Dtype) -> SearchSpec:
        settled = (
            {"dtype": "auto", "resolved": dtype} if request.dtype == "auto" else {"dtype": dtype}
        )
        model = Model.model_validate({"id": request.model, "revision": request.revision, **settled})
        spec = search_spec(records, model, probe, largest, steps, prompt_format)
        point = DesignPoint(largest, records.supervised_tokens, steps)
        training = PreparedSearch(adapter_spec(spec, records, point), source, task)
        seconds = predicted_seconds(training, records, request.profile)
        budget = Budget(gpu_seconds=round(SEARCH_COST * seconds, 1))
        return spec.model_copy(update={"budget": budget})

    if request.dtype != "auto":
        return in_dtype(request.dtype)
    for dtype in get_args(Dtype):
        spec = in_dtype(dtype)
        out = request.out or default_store(PreparedSearch(spec, source, task), request.profile)
        if _begun_as(out / "law" / SPEC_FILE) == (spec.search_id, dtype):
            return spec
    return in_dtype(device_dtype(request.profile.gpus_per_pack > 0))


def _begun_as(file: Path) -> tuple[str, Dtype] | None:
    if not file.is_file():
        return None
    kept = read_kept(SearchSpec, file)
    return kept.search_id, kept.model.base_dtype


def predicted_seconds(search: PreparedSearch, records: RecordSet, profile: ClusterProfile) -> float:
    """gpu_seconds of training the whole set, before anything was measured."""
    gpu = profile.gpus_per_pack > 0
    spec = search.spec
    (steps,) = spec.space.train_steps
    in_a_step = min(spec.recipe.batch_size, len(records.pairs))
    tokens = in_a_step * records.positions_per_record
    per_step = first_cost(search, gpu).seconds_per_token * tokens
    return steps * max(per_step, LEAST_STEP_SECONDS_GPU if gpu else LEAST_STEP_SECONDS_CPU)
