"""Measurement of a pack: load, cache, train, evaluate, save its observations."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.model_card import write_card
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.adapters.peft_io import PeftNames, save_adapter
from pmlray.engine.evaluation.control_text import Control
from pmlray.engine.evaluation.scores import Decoding, bare_losses, decode_exactly
from pmlray.engine.model.base_model import BaseModel, LoadBase, load_base_model
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prefix_store import PrefixCount, PrefixStore
from pmlray.engine.provenance import pack_provenance, run_provenance, start_provenance
from pmlray.engine.ready_pack import MakeStepper, ready_pack
from pmlray.engine.runtime.checkpoints import Checkpoints
from pmlray.engine.runtime.device_clock import paid_seconds
from pmlray.engine.scheduling.pack_watch import PackWatch, Tell, untold
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.metrics import TrainedMember
from pmlray.memory import MemorySet
from pmlray.ports import ObservationStore
from pmlray.types import FailedRun, Observation, Pack

LEFT_OUT = "left out: with it its pack would have spent more than it was given"
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
    tell: Tell = untold,
) -> float:
    """Train a pack and store each run's observation as soon as it is done.

    A run that diverges is stored as failed, one that would take the pack beyond its gpu_seconds as
    left out.

    Args:
        search: the spec with its files read and its model found.
        pack: runs to train together on one base.
        store: receives observations and failures.
        adapters: folder that receives one sub-folder per run_key.
        make_stepper: makes the Stepper from the model and its optimizer.
        backend: names and versions of the frameworks that drive the loop, for the provenance.
        checkpoints: an interrupted pack resumes from the newest; None: none are kept.
        prefix_store: cache of the frozen part's activations, shared by this node's packs; None: no
            cache.
        load_base: loads the base, or returns one loaded before.
        tell: called with the pack's progress every few seconds.

    Returns:
        Wall seconds inside optimiser steps.

    Raises:
        ModelError: the base cannot be loaded, or lacks an adapted layer.
        AskedToLeave: the process was asked to end; a checkpoint was written first if possible.
    """
    spec, device = search.spec, pick_device()
    devices = torch.get_num_threads() if device.type == "cpu" else 1
    watch = PackWatch(pack, tell, devices)
    _forget_peak_memory(device)
    ready = ready_pack(search, pack, prefix_store, load_base, watch.stage)
    base, lora, model = ready.base, ready.lora, ready.model
    watch.stage("scoring the bare base on fresh text")
    making_control = time.perf_counter()
    seq_lens = (run.point.seq_len for run in pack.runs)
    control = Control(search, base, model, seq_lens, ready.prefixes)
    control_seconds = time.perf_counter() - making_control
    # Fresh adapters add nothing, so that their curves begin with the bare base's loss.
    rows = [row for member in ready.members for row in member.rows]
    of_base = None if search.start is None else bare_losses(model, rows, len(pack.runs))
    provenance = pack_provenance(search, pack, device, devices, backend) | {
        "base_computed_in": str(base.model.dtype).removeprefix("torch."),
        "control_cache_seconds": control_seconds,
        "prefix_cache": asdict(PrefixCount() if prefix_store is None else prefix_store.count),
        **ready.facts,
    }

    def keep(finished: Sequence[TrainedMember]) -> None:
        decoded = _decode(search, base, lora, pack, ready.memories, finished)
        for trained in finished:
            keep_one(trained, decoded.get(trained.index))

    def keep_one(trained: TrainedMember, decoded: bool | None) -> None:
        run, memory = pack.runs[trained.index], ready.memories[trained.index]
        if (reason := trained.divergence) is not None:
            store.put_failure(
                FailedRun(
                    *(run.run_key, run.point, pack.round, trained.index, reason),
                    trained.gpu_seconds,
                    phase=run.phase,
                )
            )
            return
        weights = lora.weights(trained.index)
        placement = search.placement_of(run.point)
        save_adapter(
            *(adapters / run.run_key, placement, weights, spec.model.id, spec.model.revision),
            names=PeftNames.of(base, placement),
        )
        scoring = paid_seconds(device)
        beside = control.score(trained.index, run.point.seq_len)
        control_gpu_seconds = paid_seconds(device) - scoring
        tokens = memory.supervised_tokens
        shown = sum(len(r.target_ids) * r.repeats for r in memory.records)
        trained_tokens = trained.charged_steps * min(
            shown, spec.recipe.batch_size * max(len(r.target_ids) for r in memory.records)
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
            base_loss=trained.curve[0][1] if of_base is None else of_base[trained.index],
            final_loss=trained.scores.mean_nll,
            recall=trained.scores.recall,
            curve=trained.curve,
            token_p=trained.scores.token_p,
            token_p_curve=trained.token_p_curve,
            wrong_tokens=trained.scores.wrong_tokens,
            end_p=trained.scores.end_p,
            generated_match=decoded,
            gpu_seconds=trained.gpu_seconds,
            charged_steps=trained.charged_steps,
            tokens_per_second=trained_tokens / trained.wall_seconds,
            peak_memory_bytes=_peak_memory(device),
            provenance=provenance
            | run_provenance(search, run, memory)
            | start_provenance(search, trained.curve[0][1])
            | {
                "control_gpu_seconds": control_gpu_seconds,
                "pack_steps": trained.pack_steps,
            },
            control_delta_loss=beside.delta_loss,
            control_recall=beside.recall,
            prose_delta_loss=beside.prose_delta_loss,
            grad_norm=trained.grad_norm,
            learning_rate=search.peak_rate(run),
        )
        write_card(adapters / run.run_key, search, observation)
        store.put(observation)

    def leave_out(costs: Mapping[int, float]) -> None:
        for i, gpu_seconds in costs.items():
            run = pack.runs[i]
            failure = FailedRun(
                run.run_key, run.point, pack.round, i, LEFT_OUT, gpu_seconds, left_out=True
            )
            store.put_failure(replace(failure, phase=run.phase))

    watch.stage("training")
    return train_pack(
        model,
        make_stepper(model, ready.optimizer),
        ready.optimizer,
        ready.members,
        spec.recipe,
        rules=spec.memft_rules(),
        on_finished=keep,
        on_left_out=leave_out,
        checkpoints=checkpoints,
        room=ready.room,
        watch=watch,
    )


def _decode(
    search: PreparedSearch,
    base: BaseModel,
    lora: PackedLora,
    pack: Pack,
    memories: Sequence[MemorySet],
    finished: Sequence[TrainedMember],
) -> dict[int, bool | None]:
    """Check by greedy decoding the members whose argmax recall is 1; return results by index."""
    exact = [t.index for t in finished if t.divergence is None and t.scores.recall.exact == 1.0]
    max_tokens = search.spec.evaluate.generate_max_tokens
    if not exact or not max_tokens:
        return {}
    points = {i: pack.runs[i].point for i in exact}
    scales = {i: search.placement_of(point).scale(point.lora_rank) for i, point in points.items()}
    decodings = [Decoding(lora.weights(i), scales[i], memories[i].records) for i in exact]
    return dict(zip(exact, decode_exactly(base, decodings, max_tokens), strict=True))


def _forget_peak_memory(device: torch.device) -> None:
    """Reset the peak memory, so that it excludes earlier packs of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        # If the kernel refuses, the peak is that of the process since its start.
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        # VmHWM counts from the last reset; getrusage's peak from the start of the process.
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
