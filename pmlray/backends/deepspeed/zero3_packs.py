"""Packs on a base sharded over the ranks of a job: run after run, on one base for all packs.

Used only where no single device holds the base: all other packs train packed, at stage 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import pmlray.backends.deepspeed.stepper as pmlray_deepspeed
from pmlray.backends.deepspeed.ranks import Ranks, SharedCheckpoints
from pmlray.backends.deepspeed.sharded_watch import ShardedWatch
from pmlray.backends.deepspeed.zero3_run import ShardedRun, sharded_loading, zero3_config
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.model_card import write_card
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.adapters.peft_model import load_base
from pmlray.engine.evaluation.scores import TokenScores
from pmlray.engine.measure import LEFT_OUT
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prompts import search_memory
from pmlray.engine.provenance import pack_provenance, run_provenance
from pmlray.engine.scheduling.pack_watch import Tell, untold
from pmlray.errors import RunError
from pmlray.memory import MemorySet, prefix
from pmlray.ports import ObservationStore
from pmlray.types import FailedRun, Observation, Pack, PlannedRun


@dataclass(frozen=True)
class ShardedPack:
    """Pack as sent to every rank: texts of the runs still to do, by place, and gpu_seconds of those
    that have ended."""

    pack: Pack
    memories: Mapping[int, MemorySet]
    spent: float


def check_sharded(search: PreparedSearch, pack: Pack) -> None:
    """Raise RunError for a pack that only the packed engine can train."""
    spec = search.spec
    blocks = any(search.placement_of(run.point).is_block for run in pack.runs)
    if blocks or spec.recipe.dropout:
        raise RunError(
            "a base that is sharded over several workers trains PEFT's adapter: set linear modules"
            " in adapter.target_modules (or probe.placement: down_proj) and recipe.dropout: 0, or"
            " workers_per_pack: 1"
        )
    if search.source.geometry.path == "general":
        raise RunError(
            f"{spec.model.id} takes the general path, which runs on one device: set"
            " workers_per_pack: 1"
        )
    if search.start is not None:
        raise RunError("runs that begin with an adapter train packed only: set workers_per_pack: 1")
    if any(run.method != "sft" for run in pack.runs):
        raise RunError("MemFT's methods train packed only: set workers_per_pack: 1")


def prepare_pack(
    search: PreparedSearch,
    pack: Pack,
    todo: Sequence[tuple[int, PlannedRun]],
    tokenizer: Any,
    spent: float,
) -> ShardedPack:
    """Return a pack with the texts of its runs `todo`, by place; spent: gpu_seconds of the others.
    RunError or DataError where it cannot be trained."""
    check_sharded(search, pack)
    built = {
        sequence_id: search_memory(search, tokenizer, sequence_id)
        for sequence_id in sorted({run.sequence_id for _, run in todo})
    }
    own = {place: prefix(built[run.sequence_id], run.point.seq_len) for place, run in todo}
    return ShardedPack(pack, own, spent)


class ShardedPacks:
    """Trainer of packs, one after another; every rank has one and measures the same packs.

    store, adapters: where rank 0 stores results. backend: names and versions of the frameworks that
    run the loop, for the provenance. tell: receives a pack's progress from rank 0 every few
    seconds.
    """

    def __init__(
        self,
        search: PreparedSearch,
        store: ObservationStore,
        adapters: Path,
        backend: Mapping[str, str],
        ranks: Ranks,
        tell: Tell = untold,
    ) -> None:
        self._tell = tell
        self._search, self._store, self._adapters = search, store, adapters
        self._backend, self._ranks = {**backend, **pmlray_deepspeed.BACKEND}, ranks
        self._base: Any = None

    def measure(self, given: ShardedPack, checkpoints: SharedCheckpoints) -> float:
        """Train a pack's remaining runs; return the wall seconds inside optimiser steps.

        checkpoints: an interrupted pack resumes from them; they raise AskedToLeave.
        """
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        watch = self._watch(given)
        if self._base is None:
            spec = self._search.spec
            watch.stage(f"loading {spec.model.id}")
            with sharded_loading(zero3_config(spec.recipe, spec.model.base_dtype)):
                self._base = load_base(self._search)
        watch.stage("training")
        runs, state, seconds = given.pack.runs, checkpoints.resume(), 0.0
        for place, memory in given.memories.items():
            run, before = runs[place], sum(r.point.train_steps for r in runs[:place])
            if watch.is_spent:
                self._leave_out(given.pack, place, 0.0)
                continue
            with closing(ShardedRun(self._search, run, memory.records, self._base)) as trained:
                if state is not None and state.facts["run_key"] == run.run_key:
                    trained.set_state(state)
                else:
                    # A pack that resumes here needs no state of the runs before.
                    checkpoints.after(trained, before, anyone_finished=place > 0)
                watch.begin(place)
                gone = False
                while not (gone or trained.is_done):
                    trained.train_step()
                    gone = not trained.is_done and watch.after(trained)
                    if not gone:
                        checkpoints.after(trained, before + trained.step)
                gpu_seconds = self._ranks.sum(trained.clock.gpu_seconds[0])
                if gone:
                    self._leave_out(given.pack, place, gpu_seconds)
                else:
                    self._keep(given.pack, place, trained, memory, gpu_seconds)
                watch.spent += gpu_seconds
                seconds += trained.clock.training_seconds
        return seconds

    def _watch(self, given: ShardedPack) -> ShardedWatch:
        threads = torch.get_num_threads() if pick_device().type == "cpu" else 1
        return ShardedWatch(
            given.pack, self._ranks, self._tell, given.spent, self._ranks.world * threads
        )

    def _leave_out(self, pack: Pack, place: int, gpu_seconds: float) -> None:
        run = pack.runs[place]
        if self._ranks.rank == 0:
            failure = FailedRun(
                run.run_key, run.point, pack.round, place, LEFT_OUT, gpu_seconds, left_out=True
            )
            self._store.put_failure(replace(failure, phase=run.phase))

    def _keep(
        self, pack: Pack, place: int, trained: ShardedRun, memory: MemorySet, gpu_seconds: float
    ) -> None:
        """Store the results of a run; every rank must call it."""
        scores, weights = trained.scores(), trained.weights()
        trained.curve.append((trained.step, scores.mean_nll))
        if self._ranks.rank == 0:
            spec, folder = self._search.spec, self._adapters / trained.run.run_key
            placement = self._search.placement_of(trained.run.point)
            save_adapter(folder, placement, weights, spec.model.id, spec.model.revision)
            measured = self._observation(pack, place, trained, scores, memory, gpu_seconds)
            write_card(folder, self._search, measured)
            self._store.put(measured)

    def _observation(
        self,
        pack: Pack,
        place: int,
        trained: ShardedRun,
        scores: TokenScores,
        memory: MemorySet,
        gpu_seconds: float,
    ) -> Observation:
        search, run, device = self._search, trained.run, pick_device()
        seconds, on_cpu = trained.clock.training_seconds, device.type == "cpu"
        devices = self._ranks.world * (torch.get_num_threads() if on_cpu else 1)
        tokens = memory.supervised_tokens
        return Observation(
            run_key=run.run_key,
            point=run.point,
            task=search.spec.task.kind,
            method=run.method,
            seed=run.seed,
            sequence_id=run.sequence_id,
            phase=run.phase,
            round=pack.round,
            place=place,
            supervised_tokens=tokens,
            base_loss=trained.curve[0][1],
            final_loss=scores.mean_nll,
            recall=scores.recall,
            curve=tuple(trained.curve),
            token_p=scores.token_p,
            wrong_tokens=scores.wrong_tokens,
            end_p=scores.end_p,
            generated_match=None,
            gpu_seconds=gpu_seconds,
            charged_steps=float(run.point.train_steps),
            tokens_per_second=tokens * run.point.train_steps / max(seconds, 1e-9),
            peak_memory_bytes=0 if on_cpu else torch.cuda.max_memory_allocated(device),
            provenance=pack_provenance(search, pack, device, devices, self._backend)
            | run_provenance(search, run, memory)
            | {"zero_stage": 3},
            learning_rate=search.peak_rate(run),
        )
