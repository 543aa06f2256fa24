"""One run on a base that DeepSpeed ZeRO-3 shards over the ranks of a job.

At its end a run's adapter, optimiser and engine are removed; `destroy` takes the engine's hooks
from the modules. The base's shards stay for the next run's engine: `deepspeed.initialize` leaves
sharded weights as they are (`_convert_to_zero_parameters` of runtime/zero/parameter_offload.py) and
shards the new adapter only.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from inspect import getclosurevars
from typing import Any

import pmlray.backends.deepspeed.stepper  # noqa: F401  # picks the accelerator before it loads

import deepspeed  # isort: skip
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from pmlray.config.adapters.placement import Site
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.peft_io import LLAMAS_NAMES
from pmlray.engine.adapters.peft_model import SupervisedLosses, adapted_model, share_of
from pmlray.engine.evaluation.scores import TokenScores
from pmlray.engine.model.device import pick_device
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import batch_at
from pmlray.engine.training.metrics import curve_steps
from pmlray.memory import Record
from pmlray.types import PlannedRun

# Smaller weights stay whole on every rank: gathering them costs more than it saves.
SMALL_WEIGHTS = 100_000
# DeepSpeed's cache of all engines' weights, inside a wrapper that does not expose it.
RELEASED = vars(PartitionedParameterCoordinator)[
    "_PartitionedParameterCoordinator__params_to_release"
]
MATRICES, MOMENTS = ("lora_A", "lora_B"), ("exp_avg", "exp_avg_sq")


def zero3_config(recipe: Recipe, dtype: str) -> dict[str, Any]:
    """Return the engine's configuration: weights sharded, gradients clipped by the recipe."""
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


class ShardedRun:
    """Run in training, with `step` optimiser steps done. Every rank makes one, on its part of the
    base, which no other run uses meanwhile."""

    def __init__(
        self, search: PreparedSearch, run: PlannedRun, records: Sequence[Record], base: Any
    ) -> None:
        self.run, self.step = run, 0
        self.clock = DeviceClock(1, pick_device(), lambda _: (0,), 0.0)
        self.curve: list[tuple[int, float]] = []
        self._names = {
            site: LLAMAS_NAMES.of_site(site) for site in search.placement_of(run.point).sites
        }
        self._recipe, self._records = search.spec.recipe, tuple(records)
        self._shown = tuple(record for record in records for _ in range(record.repeats))
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        config = zero3_config(self._recipe, search.spec.model.base_dtype)
        self.model: SupervisedLosses = adapted_model(base, search, run)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._adam = torch.optim.AdamW(trained, lr=0.0, weight_decay=self._recipe.weight_decay)
        made: tuple[Any, ...] = deepspeed.initialize(
            model=self.model,
            optimizer=self._adam,
            config=config,
            dist_init_required=False,
        )
        self._engine, self._optimizer = made[:2]

    @property
    def is_done(self) -> bool:
        """True if all its steps are done."""
        return self.step >= self.run.point.train_steps

    def train_step(self) -> None:
        """Take an optimiser step; before it, extend the curve if a point is due."""
        steps = self.run.point.train_steps
        if self.step in {0, *curve_steps(steps)} and self.step not in dict(self.curve):
            self.curve.append((self.step, self.scores().mean_nll))
        self.clock.restart()
        self._take_step()
        self.clock.note(0, 1.0)
        self.clock.lap(training=True)
        self.step += 1

    def _take_step(self) -> None:
        size, n = self._recipe.batch_size, len(self._shown)
        batch = [self._shown[i] for i in batch_at(n, self.step, size, self.run.seed)]
        tokens = sum(len(record.supervised_ids) for record in batch)
        own, counts = share_of(batch, self._rank, self._world)
        nll, _ = self._engine(own)
        # DeepSpeed averages over ranks; the loss is a sum over them, hence the factor of `world`.
        self._engine.backward(nll.sum() * (self._world / tokens * counts))
        point = self.run.point
        recipe = self._recipe.under(point.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step, point.train_steps, self.run.learning_rate)
        self._engine.step()

    @torch.no_grad()
    def scores(self) -> TokenScores:
        """Return the losses of all records, on every rank."""
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
        ends = self._records[0].end_id is not None
        return TokenScores(tuple(nll[i] for i in order), tuple(wrong[i] for i in order), ends)

    def weights(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return A (X, r) and B (r, D) by site, gathered on every rank."""
        found = {}
        for name, values in self._matrices().items():
            with deepspeed.zero.GatheredParameters([values]):
                found[name] = values.detach().clone().float().T.contiguous()
        return {
            site: (found[f"{name}.lora_A"], found[f"{name}.lora_B"])
            for site, name in self._names.items()
        }

    def _matrices(self) -> dict[str, nn.Parameter]:
        """Return the adapter's matrices by the names that they have in PEFT's files."""
        return {
            f"{module}.{part}": values
            for name, values in self.model.adapted.named_parameters()
            for part in MATRICES
            for module, found, _ in [name.partition(f".{part}.")]
            if found
        }

    def get_state(self) -> PackState:
        """Return the unsharded state that later steps depend on, on the host; every rank must call
        it."""
        tensors: dict[str, Tensor] = {}
        # Adam has no moments before its first step.
        for name, values in self._matrices().items() if self.step else ():
            tensors[name] = _whole(safe_get_full_fp32_param(values))
            for moment in MOMENTS:
                tensors[f"{name}.{moment}"] = _whole(safe_get_full_optimizer_state(values, moment))
        facts = {
            "run_key": self.run.run_key,
            "step": self.step,
            "curve": [list(point) for point in self.curve],
            "clock": dict(self.clock.get_state().facts),
        }
        return PackState(tensors, facts).on_host()

    def set_state(self, state: PackState) -> None:
        """Restore a state in a fresh run, also one saved on another number of ranks; every rank
        must call it."""
        self.step = state.facts["step"]
        self.curve = [(int(step), float(loss)) for step, loss in state.facts["curve"]]
        self.clock.set_state(PackState(facts=state.facts["clock"]))
        if not self.step:
            return
        # The same state that torch's Adam creates at its first step.
        for shard in self._optimizer.fp32_partitioned_groups_flat:
            moments = {moment: torch.zeros_like(shard) for moment in MOMENTS}
            self._adam.state[shard] = {"step": torch.tensor(float(self.step)), **moments}
        for name, values in self._matrices().items():
            safe_set_local_fp32_param(values, self._share(values, state.tensors[name]))
            for moment in MOMENTS:
                own = self._share(values, state.tensors[f"{name}.{moment}"])
                safe_set_local_optimizer_state(values, own, moment)
            with torch.no_grad(), deepspeed.zero.GatheredParameters([values], modifier_rank=0):
                values.copy_(state.tensors[name])

    def _share(self, values: Any, whole: Tensor) -> Tensor:
        size = values.ds_tensor.numel()
        flat = pad(whole.flatten(), (0, size * self._world - whole.numel()))
        return flat[size * self._rank : size * (self._rank + 1)]

    def close(self) -> None:
        """Restore the base to its state before the run, still sharded."""
        self._engine.destroy()
        # Remove what DeepSpeed 0.19.8's destroy leaves (runtime/zero/parameter_offload.py,
        # stage3.py, partitioned_param_coordinator.py): a list of all root modules, a cache that
        # holds every engine, each weight's optimiser, and functions that would still use this
        # engine in the next one's backward passes.
        FWD_MODULE_STACK.remove(self.model)
        getclosurevars(RELEASED).nonlocals["func"].cache_clear()
        for module in self.model.modules():
            vars(module).pop("pre_bwd_fn", None)
            vars(module).pop("post_bwd_fn", None)
        for values in self.model.parameters():
            vars(values).pop("_z3_optimizer", None)
        self.model.remove_adapter()


def _whole(gathered: Tensor | None) -> Tensor:
    if gathered is None:
        raise TypeError("DeepSpeed does not train this weight")
    return gathered


@contextmanager
def sharded_loading(config: dict[str, Any]) -> Generator[None]:
    """Shard the weights that transformers loads within this context; later models stay whole."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # On Linux CPUs DeepSpeed would compile a shared-memory op with the system's C++ compiler.
    setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    kept = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept
