"""pmlray as a way of training: a pack on the cached suffix, through DeepSpeed or bare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import freeze_base
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.head import TokenLosses
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.scheduling.members import make_members
from pmlray.engine.training.loop import train_pack
from pmlray.engine.training.step import Stepper, TorchStepper
from pmlray.types import DesignPoint, MemftRules, PlannedRun
from scripts.bench.speed.pace import Pace
from scripts.bench.speed.work import Weights, Work, load_model, records_of, tokenizer_of

MakeStepper = Callable[[AdaptedModel, PackedAdamW], Stepper]


class _PacedStepper:
    """A stepper whose steps are counted."""

    def __init__(self, inner: Stepper, pace: Pace) -> None:
        self._inner, self._pace = inner, pace

    def losses(self, batch: MicroBatch, keep_TW: Tensor | None) -> TokenLosses:
        """See Stepper."""
        return self._inner.losses(batch, keep_TW)

    def backward(self, loss: Tensor) -> None:
        """See Stepper."""
        self._inner.backward(loss)

    def step(self) -> None:
        """See Stepper."""
        self._inner.step()

    def stepped(self, replayed: bool) -> None:
        """See Stepper."""
        self._inner.stepped(replayed)
        self._pace.stepped(replayed)


def pmlray_bare(work: Work, pace: Pace) -> Weights:
    """The packed engine without a training framework."""
    return _pmlray(work, pace, TorchStepper)


def pmlray(work: Work, pace: Pace) -> Weights:
    """The packed engine through DeepSpeed, as a search runs it."""
    from pmlray.backends.deepspeed.stepper import be_one_process, deepspeed_stepper

    be_one_process()
    return _pmlray(work, pace, deepspeed_stepper())


def _pmlray(work: Work, pace: Pace, make: MakeStepper) -> Weights:
    # One text and one order of records for all, as the rivals' single adapter has them.
    lora = train_packed(work, [work] * work.n_adapters, work.recipe, pace, make)
    return lora.weights(0)[work.placement.sites[-1]]


def train_packed(
    work: Work, points: Sequence[Work], recipe: Recipe, pace: Pace, make: MakeStepper
) -> PackedLora:
    """Train an adapter for each of `points` in one pack.

    work: the base, and the longest text, whose beginnings serve the shorter ones.
    """
    tokenizer = tokenizer_of(work)
    model = load_model(work)
    device = model.device
    # As they lie where they are read; random ones are made on the device.
    base = freeze_base(model.to("cpu"), tokenizer, (work.placement,), device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    cache = build_prefix_cache(base, records_of(work, tokenizer))
    runs, rows = [], []
    for i, own in enumerate(points):
        point = DesignPoint(own.lora_rank, own.seq_len, own.train_steps)
        runs.append(PlannedRun(point, "sft", 0, own.seed, "law", str(i)))
        cut = own.task == "long_context"
        rows.append([record.shortened(own.seq_len) for record in cache] if cut else cache)
    lora = PackedLora(base, [own.lora_rank for own in points], [own.seed for own in points])
    model = AdaptedModel(base, lora)
    optimizer = PackedAdamW(
        lora.param_groups(), clip_norm=recipe.clip_norm, weight_decay=recipe.weight_decay
    )
    train_pack(
        model,
        _PacedStepper(make(model, optimizer), pace),
        optimizer,
        make_members(runs, rows),
        recipe,
        rules=MemftRules(),
        on_finished=lambda _ended: None,
    )
    return lora
