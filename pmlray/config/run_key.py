"""Key of a run: the hash of everything that determines its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pmlray.types import DesignPoint, Method, Phase

if TYPE_CHECKING:
    from pmlray.config.prepared_search import PreparedSearch

# Part of every run_key: raise it when a change of code changes what a run measures.
RESULT_VERSION = 1


def run_key(
    search: PreparedSearch,
    point: DesignPoint,
    method: Method,
    sequence_id: int,
    seed: int,
    phase: Phase,
    learning_rate: float | None = None,
) -> str:
    """Return the run_key of a run; see `PreparedSearch.plan_run`.

    What is off, or was of all runs of before, is left out, so that these keep their keys.
    """
    spec, memory = search.spec, search.task
    # A rate that follows the place is told as the number that it is there.
    recipe = spec.recipe.under(point.schedule)
    recipe = recipe.model_copy(update={"learning_rate": search.peak_rate_at(point)})
    told = recipe.model_dump()
    # MemFT's methods are compared at equal steps: no run of that phase stops early.
    if phase == "memft":
        told |= {"stop_loss": 0.0, "stop_gain": 0.0}
    if not told["stop_gain"]:
        del told["stop_gain"]
    task = asdict(memory)
    if task["repeats"] is None:
        del task["repeats"]
    determines: dict[str, Any] = {
        "version": RESULT_VERSION,
        "model": search.source.identity,
        "dtype": spec.model.base_dtype,
        **_place(search, point),
        "task": task,
        "prompt_format": spec.task.prompt_format,
        # A base text is split into stretches of the longest length.
        "stretch": max(spec.space.seq_len) if memory.text is not None else None,
        "recipe": told,
        # Unused; kept so that the run_keys of plain fine-tuning do not change.
        "threshold": None,
        "point": replace(point, placement=None, schedule=None).to_json(),
        "method": method,
        "sequence_id": sequence_id,
        "seed": seed,
    }
    if spec.task.end:
        determines["end"] = True
    if method != "sft":
        determines["memft"] = spec.memft_rules().of_method(method)
    if learning_rate is not None:
        determines["learning_rate"] = learning_rate
    digest = hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()
    return digest[:16]


def _place(search: PreparedSearch, point: DesignPoint) -> dict[str, Any]:
    """Return where the run's adapter sits and what it begins with: no name of a placement, so that
    a run is the same whatever its placement is called."""
    if search.spec.probe is not None:
        return {"probe": search.spec.probe.model_dump()}
    facts = {} if search.start is None else {"from_adapter": search.start.facts()}
    return {"adapter": asdict(search.placement_of(point)), **facts}
