"""A base sharded over the workers of a pack by DeepSpeed ZeRO-3: its runs train one by one.

Only where no single device holds the base: everything else trains packed, at stage 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pmlray.backends.deepspeed as pmlray_deepspeed  # picks the accelerator before it loads

import deepspeed  # isort: skip
import deepspeed.ops
import torch
import torch.distributed as dist

from pmlray.config.prepared import PreparedSearch
from pmlray.config.recipe import Recipe
from pmlray.engine.adapter_card import write_card
from pmlray.engine.base_model import render_prompt
from pmlray.engine.evaluate import TokenScores
from pmlray.engine.measure import pick_device
from pmlray.engine.members import batch_at
from pmlray.engine.peft_io import save_adapter
from pmlray.engine.provenance import pack_provenance, run_provenance
from pmlray.engine.sharded import SupervisedLosses, adapted_model, load_base, share_of
from pmlray.engine.trained import curve_steps
from pmlray.errors import RunError
from pmlray.memory import MemorySet, Record, build_memory, prefix
from pmlray.types import Observation, Pack, PlannedRun

TAG = "pmlray"
STEPS_BETWEEN_CHECKPOINTS = 200
# Weights of fewer values stay whole on every worker: gathering them costs more than it saves.
SMALL_WEIGHTS = 100_000
# Keeps a folder with what every rank saved, and the run and step that it belongs to.
Keep = Callable[[Callable[[str], None]], None]


def zero3_config(recipe: Recipe, dtype: str) -> dict[str, Any]:
    """The engine's configuration: all weights sharded, gradients clipped as the recipe says."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.clip_norm,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": SMALL_WEIGHTS},
        "steps_per_print": 10**9,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    return config


def check_sharded(search: PreparedSearch, pack: Pack) -> None:
    """RunError for what only the packed engine trains."""
    spec = search.spec
    if spec.probe.placement != "down_proj" or spec.recipe.dropout:
        raise RunError(
            "a base that is sharded over several workers trains PEFT's adapter: set"
            " probe.placement: down_proj and recipe.dropout: 0, or workers_per_pack: 1"
        )
    if any(run.method != "sft" for run in pack.runs):
        raise RunError("MemFT's methods train packed only: set workers_per_pack: 1")


class ShardedRun:
    """One run while it trains; `step` optimiser steps are done. Every rank makes one, on a base of
    its own that no other run uses meanwhile."""

    def __init__(
        self, search: PreparedSearch, run: PlannedRun, records: Sequence[Record], base: Any
    ) -> None:
        self.run, self.step, self.seconds = run, 0, 0.0
        self.curve: list[tuple[int, float]] = []
        self._recipe, self._records = search.spec.recipe, tuple(records)
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # On Linux CPUs DeepSpeed would compile a shared-memory op with the system's C++ compiler.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
        config = zero3_config(self._recipe, search.spec.model.dtype)
        self.model: SupervisedLosses = adapted_model(base, search, run)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=self._recipe.weight_decay)
        made: tuple[Any, ...] = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
        self._engine, self._optimizer = made[:2]

    def train_to(self, step: int) -> None:
        """Take optimiser steps until so many are done; the curve is kept on the way."""
        steps = self.run.point.train_steps
        while self.step < step:
            if self.step in {0, *curve_steps(steps)} and self.step not in dict(self.curve):
                self.curve.append((self.step, self.scores().mean_nll))
            started = time.perf_counter()
            self._take_step()
            self.seconds += time.perf_counter() - started
            self.step += 1

    def _take_step(self) -> None:
        size, n = self._recipe.batch_size, len(self._records)
        batch = [self._records[i] for i in batch_at(n, self.step, size, self.run.seed)]
        tokens = sum(len(record.target_ids) for record in batch)
        own, counts = share_of(batch, self._rank, self._world)
        nll, _ = self._engine(own)
        # DeepSpeed takes the mean over ranks of what is one sum over all of them.
        self._engine.backward(nll.sum() * (self._world / tokens * counts))
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate_at(self.step, self.run.point.train_steps)
        self._engine.step()

    @torch.no_grad()
    def scores(self) -> TokenScores:
        """All records' losses, on every rank."""
        nll: dict[int, tuple[float, ...]] = {}
        wrong: dict[int, tuple[bool, ...]] = {}
        for start in range(0, len(self._records), self._world):
            at = start + self._rank
            own = self._records[min(at, len(self._records) - 1)]
            losses, misses = self._engine([own])
            found: list[Any] = [None] * self._world
            dist.all_gather_object(found, (at, losses.double().tolist(), misses.tolist()))
            for i, row, missed in found:
                if i < len(self._records):
                    nll[i], wrong[i] = tuple(row), tuple(missed)
        order = range(len(self._records))
        return TokenScores(tuple(nll[i] for i in order), tuple(wrong[i] for i in order))

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (X, r) and B (r, D), gathered on every rank."""
        found = {}
        for name, values in self.model.named_parameters():
            for part in ("lora_A", "lora_B"):
                if part in name:
                    with deepspeed.zero.GatheredParameters([values]):
                        found[part] = values.detach().clone().float().T.contiguous()
        return found["lora_A"], found["lora_B"]

    def save(self, folder: str) -> None:
        """What this rank adds to a checkpoint; every rank must call it."""
        state = {
            "run_key": self.run.run_key,
            "step": self.step,
            "seconds": self.seconds,
            "curve": [list(point) for point in self.curve],
        }
        self._engine.save_checkpoint(
            folder, tag=TAG, client_state=state, exclude_frozen_parameters=True
        )

    def resume(self, folder: str) -> None:
        """Go on from a checkpoint of this run; one of another run changes nothing."""
        if not (Path(folder) / f"{self.run.run_key}.run").is_file():
            return
        _, state = self._engine.load_checkpoint(folder, tag=TAG, load_module_strict=False)
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve = [(int(step), float(loss)) for step, loss in state["curve"]]

    def close(self) -> Any:
        """Let the engine's memory go; the base without the run's adapter, still sharded."""
        self._engine.destroy()
        return self.model.without_adapter()


def measure_sharded(
    search: PreparedSearch,
    pack: Pack,
    done: Callable[[str], bool],
    put: Callable[[Observation], None],
    adapters: Path,
    tokenizer: Any,
    backend: dict[str, str],
    resume_from: str | None,
    keep: Keep,
) -> float:
    """Train a pack's runs one after another, each sharded over all ranks; every rank calls this.
    The base is loaded once for all of them.

    done: whether a run_key is measured already. put: called on rank 0 alone. resume_from: folder of
    the last checkpoint. keep: given a function that saves into a folder, it keeps what all ranks
    saved. Returns wall seconds inside optimiser steps.
    """
    check_sharded(search, pack)
    spec, seconds, base = search.spec, 0.0, None

    def render(text: str) -> list[int]:
        return render_prompt(tokenizer, text, prompt_format=spec.task.prompt_format)

    for place, run in enumerate(pack.runs):
        if done(run.run_key):
            continue
        memory = prefix(
            build_memory(
                search.task,
                run.sequence_id,
                max(spec.space.seq_len),
                tokenizer.backend_tokenizer,
                render,
            ),
            run.point.seq_len,
        )
        if base is None:
            with _sharded_loading(zero3_config(spec.recipe, spec.model.dtype)):
                base = load_base(search)
        trained = ShardedRun(search, run, memory.records, base)
        if resume_from is not None:
            trained.resume(resume_from)
        steps = run.point.train_steps
        while trained.step < steps:
            trained.train_to(min(steps, trained.step + STEPS_BETWEEN_CHECKPOINTS))
            if trained.step < steps:
                keep(lambda folder, at=trained: _save(at, folder))
        scores, weights = trained.scores(), trained.weights()
        trained.curve.append((steps, scores.mean_nll))
        if dist.get_rank() == 0:
            save_adapter(adapters / run.run_key, spec.probe, weights, spec.model.id)
            measured = _observation(search, pack, place, trained, scores, memory, backend)
            write_card(adapters / run.run_key, spec, measured)
            put(measured)
        seconds += trained.seconds
        base = trained.close()
        dist.barrier()
    return seconds


def _save(trained: ShardedRun, folder: str) -> None:
    (Path(folder) / f"{trained.run.run_key}.run").touch()
    trained.save(folder)


def _observation(
    search: PreparedSearch,
    pack: Pack,
    place: int,
    trained: ShardedRun,
    scores: TokenScores,
    memory: MemorySet,
    backend: dict[str, str],
) -> Observation:
    run, device = trained.run, pick_device()
    on_cpu = device.type == "cpu"
    devices = dist.get_world_size() * (torch.get_num_threads() if on_cpu else 1)
    tokens = sum(map(len, scores.nll))
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
        generated_match=None,
        gpu_seconds=trained.seconds * devices,
        charged_steps=float(run.point.train_steps),
        tokens_per_second=tokens * run.point.train_steps / max(trained.seconds, 1e-9),
        peak_memory_bytes=0 if on_cpu else torch.cuda.max_memory_allocated(device),
        provenance=pack_provenance(
            search, pack, device, devices, backend | pmlray_deepspeed.BACKEND
        )
        | run_provenance(memory)
        | {"zero_stage": 3},
        learning_rate=run.learning_rate or search.spec.recipe.learning_rate,
    )


@contextmanager
def _sharded_loading(config: dict[str, Any]) -> Iterator[None]:
    """Weights that transformers loads meanwhile are sharded as they come; later models are not."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept
