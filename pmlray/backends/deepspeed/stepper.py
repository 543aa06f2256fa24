"""DeepSpeed as the engine of a pack's training loop: stage 0, one process, packed adapters."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

# DeepSpeed selects its accelerator when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
from torch import Tensor

from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.head import TokenLosses

BACKEND = {"deepspeed": version("deepspeed")}


def deepspeed_config() -> dict[str, object]:
    """Return the engine's configuration.

    Stage 0: the base fits one device, so nothing is sharded. Clipping is per adapter, in the
    optimizer, so DeepSpeed's own is off. Accumulation is unmanaged: a step has as many
    micro-batches as its rows need.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": 0},
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        # The timer synchronises with the device in every step, which a captured step must not.
        "timers": {"throughput": {"enabled": False}},
    }


def be_one_process() -> None:
    """Initialise a torch process group of one, which DeepSpeed needs, unless there is a group."""
    if not torch.distributed.is_initialized():
        # LOCAL_RANK is DeepSpeed's device number: overwrite any value left by a launcher. A store
        # in memory needs no free port.
        os.environ["LOCAL_RANK"] = "0"
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


class DeepSpeedStepper:
    """Stepper that runs forward, backward and update through a DeepSpeed engine."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        # Any, since inferring its unannotated methods took the type checker 10 s.
        self._engine: Any = engine
        self._steps = 0

    def losses(self, batch: MicroBatch, keep_TW: Tensor | None) -> TokenLosses:
        """Return per-token losses with their autograd graph."""
        return self._engine(batch, keep_TW)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, a sum over tokens, to those already accumulated."""
        self._engine.backward(loss)

    def step(self) -> None:
        """Update the adapters and clear their gradients."""
        self._engine.step()

    def stepped(self, replayed: bool) -> None:
        """Correct the engine's step count, which misses replays and counts repeated steps twice."""
        self._steps += 1
        self._engine.global_steps = self._steps


def deepspeed_stepper(
    on_engine: Callable[[deepspeed.DeepSpeedEngine], None] | None = None,
) -> Callable[[AdaptedModel, PackedAdamW], DeepSpeedStepper]:
    """Return a factory of steppers for `measure_pack`; needs a process group (`be_one_process`)."""

    def make(model: AdaptedModel, optimizer: PackedAdamW) -> DeepSpeedStepper:
        # On Linux CPUs DeepSpeed would compile a shared-memory op with the system's C++ compiler.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
        initialize: Any = deepspeed.initialize
        engine, *_ = initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(), dist_init_required=False
        )
        if on_engine is not None:
            on_engine(engine)
        return DeepSpeedStepper(engine)

    return make
