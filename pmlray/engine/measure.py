"""From a pack to its observations: load, cache, train, evaluate, save."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from pmlray.config.prepared import PreparedSearch
from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.adapter_card import write_card
from pmlray.engine.admission import Admission
from pmlray.engine.base_model import BaseModel, LoadBase, load_base_model, render_prompt
from pmlray.engine.checkpoints import Checkpoints
from pmlray.engine.control import Control, Prefixes
from pmlray.engine.evaluate import Decoding, decode_exactly
from pmlray.engine.loop import train_pack
from pmlray.engine.members import make_members
from pmlray.engine.optimizer import PackedAdamW
from pmlray.engine.packed_lora import PackedLora
from pmlray.engine.peft_io import save_adapter
from pmlray.engine.prefix_cache import CachedRecord, build_prefix_cache
from pmlray.engine.prefix_store import PrefixCount, PrefixStore
from pmlray.engine.provenance import pack_provenance, run_provenance
from pmlray.engine.stepper import Stepper
from pmlray.engine.trained import TrainedMember
from pmlray.memory import MemorySet, PromptRenderer, Record, build_memory, prefix
from pmlray.ports import ObservationStore
from pmlray.types import FailedRun, Observation, Pack

MakeStepper = Callable[[AdaptedModel, PackedAdamW], Stepper]
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def pick_device() -> torch.device:
    """The GPU this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure_pack(
    search: PreparedSearch,
    pack: Pack,
    store: ObservationStore,
    adapters: Path,
    make_stepper: MakeStepper,
    backend: Mapping[str, str],
    checkpoints: Checkpoints | None = None,
    prefix_store: PrefixStore | None = None,
    load_base: LoadBase = load_base_model,
) -> float:
    """Train a pack and store each run's observation as soon as it is done.

    adapters: folder that receives one sub-folder a run_key. backend: names and versions of what
    drives the loop, for the provenance. checkpoints: from where the pack goes on, if it was cut
    off. prefix_store: where this node's packs share the frozen part's activations; None: nowhere.
    load_base: loads the base, or has it already. Returns wall seconds inside optimiser steps. A run
    that diverges is stored as failed; errors of the whole pack propagate.
    """
    spec, device = search.spec, pick_device()
    started = time.perf_counter()
    _forget_peak_memory(device)
    base = load_base(
        spec.model.id, search.source, spec.model.revision, spec.model.base_dtype, spec.probe, device
    )
    loaded = time.perf_counter()
    render = partial(render_prompt, base.tokenizer, prompt_format=spec.task.prompt_format)
    memories = _memories(search, base, pack, render)
    prefixes = build_prefix_cache if prefix_store is None else prefix_store.fetch
    cache = _caches(base, memories, pack, prefixes)
    cached = time.perf_counter()
    own_memory = [prefix(memories[r.sequence_id], r.point.seq_len) for r in pack.runs]
    own_rows = [
        _shortened(cache[run.sequence_id], memory.records)
        for run, memory in zip(pack.runs, own_memory, strict=True)
    ]
    members = make_members(pack.runs, own_rows)
    lora = PackedLora(
        base,
        [r.point.lora_rank for r in pack.runs],
        [r.seed for r in pack.runs],
        Admission(members, spec.recipe, pack.room).most_at_once,
    )
    model = AdaptedModel(base, lora)
    making_control = time.perf_counter()
    control = Control(search, base, model, (r.point.seq_len for r in pack.runs), render, prefixes)
    control_seconds = time.perf_counter() - making_control
    optimizer = PackedAdamW(
        model.parameters(),
        clip_norm=spec.recipe.clip_norm,
        weight_decay=spec.recipe.weight_decay,
    )
    devices = torch.get_num_threads() if device.type == "cpu" else 1
    provenance = pack_provenance(search, pack, device, devices, backend) | {
        "room": None if pack.room is None else asdict(pack.room),
        "base_computed_in": str(base.model.dtype).removeprefix("torch."),
        "device_memory_bytes": _device_memory(device, torch.get_num_threads()),
        "load_seconds": loaded - started,
        "prefix_cache_seconds": cached - loaded,
        "control_cache_seconds": control_seconds,
        "prefix_cache": asdict(PrefixCount() if prefix_store is None else prefix_store.count),
    }

    def keep(finished: Sequence[TrainedMember]) -> None:
        decoded = _decode(base, spec.evaluate.generate_max_tokens, lora, own_memory, finished)
        for trained in finished:
            keep_one(trained, decoded.get(trained.index))

    def keep_one(trained: TrainedMember, decoded: bool | None) -> None:
        run, memory = pack.runs[trained.index], own_memory[trained.index]
        gpu_seconds = trained.device_seconds * devices
        if (reason := trained.divergence) is not None:
            store.put_failure(
                FailedRun(run.run_key, run.point, pack.round, trained.index, reason, gpu_seconds)
            )
            return
        save_adapter(adapters / run.run_key, spec.probe, lora.weights(trained.index), spec.model.id)
        scoring = time.perf_counter()
        beside = control.score(trained.index, run.point.seq_len)
        control_gpu_seconds = (time.perf_counter() - scoring) * devices
        tokens = memory.supervised_tokens
        trained_tokens = trained.charged_steps * min(
            tokens, spec.recipe.batch_size * max(len(r.target_ids) for r in memory.records)
        )
        observation = Observation(
            run_key=run.run_key,
            point=run.point,
            task=spec.task.kind,
            method=run.method,
            seed=run.seed,
            sequence_id=run.sequence_id,
            phase=run.phase,
            round=pack.round,
            place=trained.index,
            supervised_tokens=tokens,
            base_loss=trained.curve[0][1],
            final_loss=trained.scores.mean_nll,
            recall=trained.scores.recall,
            curve=trained.curve,
            token_p=trained.scores.token_p,
            token_p_curve=trained.token_p_curve,
            wrong_tokens=trained.scores.wrong_tokens,
            generated_match=decoded,
            gpu_seconds=gpu_seconds,
            charged_steps=trained.charged_steps,
            tokens_per_second=trained_tokens / trained.device_seconds,
            peak_memory_bytes=_peak_memory(device),
            provenance=provenance
            | run_provenance(memory)
            | {
                "control_gpu_seconds": control_gpu_seconds,
                "pack_steps": trained.pack_steps,
            },
            control_delta_loss=beside.delta_loss,
            control_recall=beside.recall,
            prose_delta_loss=beside.prose_delta_loss,
            grad_norm=trained.grad_norm,
            learning_rate=run.learning_rate or spec.recipe.learning_rate,
        )
        write_card(adapters / run.run_key, spec, observation)
        store.put(observation)

    return train_pack(
        model,
        make_stepper(model, optimizer),
        optimizer,
        members,
        spec.recipe,
        rules=spec.memft_rules(),
        on_finished=keep,
        checkpoints=checkpoints,
        room=pack.room,
    )


def _memories(
    search: PreparedSearch, base: BaseModel, pack: Pack, render: PromptRenderer
) -> dict[int, MemorySet]:
    longest = max(search.spec.space.seq_len)
    return {
        sequence_id: build_memory(
            search.task, sequence_id, longest, base.tokenizer.backend_tokenizer, render
        )
        for sequence_id in sorted({run.sequence_id for run in pack.runs})
    }


def _caches(
    base: BaseModel, memories: Mapping[int, MemorySet], pack: Pack, prefixes: Prefixes
) -> dict[int, tuple[CachedRecord, ...]]:
    """Each sequence's cache on the device, cut to what this pack needs.

    It is built as long as the search needs it: built shorter, it would be another one for every
    pack, and rounded otherwise.
    """
    caches = {}
    for sequence_id, memory in memories.items():
        longest = max(r.point.seq_len for r in pack.runs if r.sequence_id == sequence_id)
        own = _shortened(prefixes(base, memory.records), prefix(memory, longest).records)
        caches[sequence_id] = tuple(record.to(base.device) for record in own)
    return caches


def _decode(
    base: BaseModel,
    max_tokens: int,
    lora: PackedLora,
    memories: Sequence[MemorySet],
    finished: Sequence[TrainedMember],
) -> dict[int, bool | None]:
    """The check of real decoding, by index, for those that should recall everything."""
    exact = [t.index for t in finished if t.divergence is None and t.scores.recall.exact == 1.0]
    if not exact or not max_tokens:
        return {}
    decodings = [Decoding(lora.weights(i), memories[i].records) for i in exact]
    return dict(zip(exact, decode_exactly(base, decodings, max_tokens), strict=True))


def _shortened(
    cache: tuple[CachedRecord, ...], records: tuple[Record, ...]
) -> tuple[CachedRecord, ...]:
    return tuple(
        cached.shortened(len(record.target_ids))
        for cached, record in zip(cache[: len(records)], records, strict=True)
    )


def _forget_peak_memory(device: torch.device) -> None:
    """Start the peak anew: what an earlier pack of this process took is no part of this one's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        # Where the kernel refuses, the peak is that of the process so far.
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        # Since it was forgotten last; getrusage's is that of the whole process.
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_memory(device: torch.device, threads: int) -> int:
    """Bytes that a pack may use: the GPU's, or its cores' share of the machine's (or container's)
    memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        total = min(total, int(limit))
    return total * min(threads, os.cpu_count() or threads) // (os.cpu_count() or threads)
