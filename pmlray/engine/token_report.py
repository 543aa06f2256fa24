"""Diagnosis of single tokens: residual norms in the base, and a run with another adapter layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.evaluation.scores import score_tokens
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.batches import Row
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import DataError, ModelError, RunError
from pmlray.memory import MemorySet, prefix
from pmlray.ports import ObservationStore
from pmlray.types import Observation, Pack, PlannedRun


@dataclass(frozen=True, slots=True)
class TracedToken:
    """Measurements of a supervised token in the frozen base.

    `record` and `place`: index of the record and of the token in its target, from 0. `base_p`:
    probability without an adapter. `norm`: Euclidean norm of the residual stream after the
    adapter's layer, where a probe's output is added, at the position that predicts the token (where
    the adapters have other sites: before the lowest adapted layer of all);
    `norm_ratio`: that norm over the median of the sequence's supervised tokens. Far above 1 it is a
    massive activation (arXiv 2402.17762), beside which the adapter's output is small.
    """

    token_id: int
    text: str
    record: int
    place: int
    base_p: float
    norm: float
    norm_ratio: float


def trace_tokens(
    search: PreparedSearch, observations: Sequence[Observation]
) -> dict[int, tuple[TracedToken, ...]]:
    """Trace every supervised token of the longest text that these runs memorised, by sequence_id.

    The base is loaded once. DataError when a text differs from the one its run was trained on,
    RunError where the base's path has no activations below the adapter.
    """
    spec = search.spec
    if search.source.geometry.path == "general":
        raise RunError(
            f"{spec.model.id} takes the general path, which caches no activations whose norms could"
            " be told"
        )
    base = load_base_model(
        spec.model.id,
        search.source,
        spec.model.revision,
        spec.model.base_dtype,
        tuple(dict.fromkeys(search.placement_of(o.point) for o in observations)),
        pick_device(),
    )
    traced = {}
    for sequence_id in sorted({o.sequence_id for o in observations}):
        memory = search_memory(search, base.tokenizer, sequence_id)
        own = [o for o in observations if o.sequence_id == sequence_id]
        for o in own:
            _check_text(memory, o)
        used = max(o.point.seq_len for o in own)
        traced[sequence_id] = _trace(base, prefix(memory, used))
    return traced


def measure_moved(
    moved: PreparedSearch, observation: Observation, store: ObservationStore, adapters: Path
) -> Observation:
    """Measure a run again with its adapter at another layer, everything else equal.

    moved: the search that `at_layer` returned for this observation. store: that search's store,
    never the observation's own; a run that it holds is not trained again. adapters: as in
    `measure_pack`. RunError when the run diverges.
    """
    run = _planned(moved, observation)
    if (kept := _kept(store, run.run_key)) is not None:
        return kept
    measure_pack(moved, Pack(0, (run,)), store, adapters, TorchStepper, {})
    if (kept := _kept(store, run.run_key)) is not None:
        return kept
    reason = store.failures()[-1].reason
    raise RunError(f"the run at {moved.spec.place.describe()} left no result: {reason}")


def at_layer(search: PreparedSearch, observation: Observation, layer: int) -> PreparedSearch:
    """Return a run's search with its adapters at another layer; its search_id differs.

    DataError when this search would no longer reproduce the observation's run, so that more than
    the layer would differ, or when its adapters are no probe of one layer. ModelError when the base
    has no such layer.
    """
    spec, n_layers = search.spec, search.source.geometry.n_layers
    if spec.probe is None:
        raise DataError(
            f"the adapter of {observation.run_key} sits at {search.place_name(observation.point)}:"
            " only a probe, at one layer, can be moved to another"
        )
    if layer >= n_layers:
        raise ModelError(f"{spec.model.id} has layers 0 to {n_layers - 1}, and no layer {layer}")
    # A store may be older than the plateau rule (stop_gain), whose default would now be applied.
    recipes = (spec.recipe, spec.recipe.model_copy(update={"stop_gain": 0.0}))
    probe = Probe(placement=spec.probe.placement, layer=layer)
    for recipe in recipes:
        own = replace(search, spec=spec.model_copy(update={"recipe": recipe}))
        if _planned(own, observation).run_key == observation.run_key:
            return replace(own, spec=own.spec.model_copy(update={"probe": probe}))
    raise DataError(
        f"run {observation.run_key} was measured under another version of this search, its task's"
        " files, its base model or pmlray; run the search again in a new store to compare layers"
    )


def _planned(search: PreparedSearch, o: Observation) -> PlannedRun:
    return search.plan_run(o.point, o.method, o.sequence_id, o.seed, o.phase)


def _kept(store: ObservationStore, run_key: str) -> Observation | None:
    return next((o for o in store.observations() if o.run_key == run_key), None)


def _check_text(memory: MemorySet, observation: Observation) -> None:
    text = prefix(memory, observation.point.seq_len)
    if text.content_hash != observation.provenance.get("content_hash"):
        raise DataError(
            f"run {observation.run_key} memorised another text than sequence"
            f" {observation.sequence_id} of this search is now: the task's file, the tokenizer or"
            " pmlray's generator has changed since"
        )


@torch.no_grad()
def _trace(base: BaseModel, memory: MemorySet) -> tuple[TracedToken, ...]:
    targets = [replace(record, end_id=None) for record in memory.records]
    cached = build_prefix_cache(base, targets)
    # An untrained adapter has B = 0, so these are the base's losses.
    model = AdaptedModel(base, PackedLora(base, [1], [0], placements=base.placements[:1]))
    scores = score_tokens(model, [Row(0, i, record) for i, record in enumerate(cached)])
    norms = torch.cat([c.hidden_TD[c.first :].float().norm(dim=1) for c in cached])
    median = norms.median()
    places = [
        (r, place, token_id)
        for r, record in enumerate(memory.records)
        for place, token_id in enumerate(record.target_ids)
    ]
    return tuple(
        TracedToken(
            token_id,
            base.tokenizer.decode([token_id]),
            record,
            place,
            p,
            norm,
            norm / median.item(),
        )
        for (record, place, token_id), p, norm in zip(
            places, scores.token_p, norms.tolist(), strict=True
        )
    )
