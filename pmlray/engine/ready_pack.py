"""Preparation of a pack: load the base, cache the frozen activations, create the adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pmlray.config.adapters.adapter_memory import (
    adapter_bytes,
    check_adapter_fits,
    position_bytes,
    widest,
)
from pmlray.config.adapters.placement import Placement
from pmlray.config.prepared_search import PreparedSearch
from pmlray.design.packing import MEMORY_SHARE
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.start_weights import start_weights
from pmlray.engine.evaluation.control_text import Prefixes
from pmlray.engine.model.base_model import BaseModel, LoadBase, load_base_model
from pmlray.engine.model.batches import CPU_MICRO_BATCH_TOKENS, MAX_MICRO_BATCH_TOKENS
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prefix_cache import CachedRecord, build_prefix_cache
from pmlray.engine.model.prefix_store import PrefixStore
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.runtime.device_memory import gpu_memory, main_memory
from pmlray.engine.scheduling.members import Admission, Member, make_members
from pmlray.engine.scheduling.pack_room import StepBytes, room_within
from pmlray.engine.training.step import Stepper
from pmlray.memory import MemorySet, Record, prefix
from pmlray.types import Pack, Room

MakeStepper = Callable[[AdaptedModel, PackedAdamW], Stepper]
Stage = Callable[[str], None]


@dataclass(frozen=True)
class ReadyPack:
    """A pack ready to train.

    `memories` and `members` follow the order of its runs. `prefixes`: returns the cached
    activations of records. `room`: of a step, the pack's own or, where memory holds less, that.
    `facts`: seconds taken by each part of the preparation, and what memory it was planned for.
    """

    base: BaseModel
    memories: tuple[MemorySet, ...]
    members: tuple[Member, ...]
    lora: PackedLora
    model: AdaptedModel
    optimizer: PackedAdamW
    prefixes: Prefixes
    room: Room | None
    facts: Mapping[str, Any]


def ready_pack(
    search: PreparedSearch,
    pack: Pack,
    prefix_store: PrefixStore | None,
    load_base: LoadBase = load_base_model,
    stage: Stage = lambda words: None,
) -> ReadyPack:
    """Load the base, cache the frozen activations and create the adapters of a pack.

    prefix_store: cache of the frozen part's activations, shared by this node's packs; None: no
    cache. load_base: loads the base, or returns one loaded before. stage: called with a
    description of each stage as it begins. ModelError where an adapter of the pack is larger than
    the device's memory.
    """
    spec, device = search.spec, pick_device()
    threads = torch.get_num_threads()
    memory = gpu_memory() if device.type == "cuda" else main_memory(threads)
    points = [run.point for run in pack.runs]
    check_adapter_fits(search, points, memory)
    placements = [search.placement_of(point) for point in points]
    started = time.perf_counter()
    stage(f"loading {spec.model.id}")
    base = load_base(
        *(spec.model.id, search.source, spec.model.revision, spec.model.base_dtype),
        *(_distinct(placements), device),
    )
    loaded = time.perf_counter()
    stage("running the frozen layers over the texts")
    by_sequence = {
        sequence_id: search_memory(search, base.tokenizer, sequence_id)
        for sequence_id in sorted({run.sequence_id for run in pack.runs})
    }
    prefixes = build_prefix_cache if prefix_store is None else prefix_store.fetch
    cache = _caches(base, by_sequence, pack, prefixes)
    cached = time.perf_counter()
    memories = tuple(prefix(by_sequence[r.sequence_id], r.point.seq_len) for r in pack.runs)
    own_rows = [
        _shortened(cache[run.sequence_id], memory.records)
        for run, memory in zip(pack.runs, memories, strict=True)
    ]
    repeats = [[record.repeats for record in memory.records] for memory in memories]
    members = make_members(pack.runs, own_rows, repeats)
    step = StepBytes(
        tuple(
            (placements.count(placement), adapter_bytes(search, point))
            for placement, point in widest(search, points).items()
        ),
        position_bytes(search, points, base.model.dtype.itemsize),
        CPU_MICRO_BATCH_TOKENS if device.type == "cpu" else MAX_MICRO_BATCH_TOKENS,
    )
    # Sizes alone, so that a pack that is continued finds its slots as they were.
    free = MEMORY_SHARE * memory - _bytes_on(base.device, base.model)
    room = room_within(free, step, members, spec.recipe, pack.room)
    lora = PackedLora(
        base,
        [point.lora_rank for point in points],
        [r.seed for r in pack.runs],
        Admission(members, spec.recipe, room).most_at_once,
        placements,
        None if search.start is None else start_weights(search.start),
    )
    model = AdaptedModel(base, lora)
    optimizer = PackedAdamW(
        lora.param_groups(),
        clip_norm=spec.recipe.clip_norm,
        weight_decay=spec.recipe.weight_decay,
    )
    facts = {
        "load_seconds": loaded - started,
        "prefix_cache_seconds": cached - loaded,
        "room": None if room is None else asdict(room),
        "adapter_slots": lora.n_slots,
        "largest_rank": max(point.lora_rank for point in points),
        "device_memory_bytes": memory,
    }
    return ReadyPack(base, memories, members, lora, model, optimizer, prefixes, room, facts)


def _distinct(placements: Iterable[Placement]) -> tuple[Placement, ...]:
    """Return each placement once, in an order that does not depend on the pack's, so that a base
    that is kept serves every pack with these."""
    return tuple(sorted(set(placements), key=repr))


def _bytes_on(device: torch.device, model: Any) -> int:
    """Return the bytes of a model's weights on a device; those of a tied weight count once."""
    weights = {w.data_ptr(): w.nbytes for w in model.parameters() if w.device == device}
    return sum(weights.values())


def _caches(
    base: BaseModel, memories: Mapping[int, MemorySet], pack: Pack, prefixes: Prefixes
) -> dict[int, tuple[CachedRecord, ...]]:
    """Return each sequence's cache on the device, cut to the length that this pack needs.

    It is built at the search's full length: a shorter one would differ from pack to pack, also in
    rounding, and could not be shared.
    """
    caches = {}
    for sequence_id, memory in memories.items():
        longest = max(r.point.seq_len for r in pack.runs if r.sequence_id == sequence_id)
        own = _shortened(prefixes(base, memory.records), prefix(memory, longest).records)
        caches[sequence_id] = tuple(record.to(base.device) for record in own)
    return caches


def _shortened(
    cache: tuple[CachedRecord, ...], records: tuple[Record, ...]
) -> tuple[CachedRecord, ...]:
    return tuple(
        cached.shortened(len(record.target_ids))
        for cached, record in zip(cache[: len(records)], records, strict=True)
    )
