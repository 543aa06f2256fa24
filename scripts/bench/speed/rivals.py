"""Loops that others write by hand: the authors', and PEFT under DeepSpeed."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pmlray.engine.model.fast_base import FastBase
from pmlray.memory import Record
from scripts.bench.speed.pace import Pace
from scripts.bench.speed.work import (
    Weights,
    Work,
    batch_at,
    collate,
    first_As,
    load_model,
    peft_model,
    peft_weights,
    records_of,
    tokenizer_of,
)


class _ProductAdapter(nn.Module):
    """x (A B) with the product made whole and scaled for every row, as the authors do it."""

    def __init__(self, work: Work, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        (first,) = first_As(work).values()
        self.A = nn.Parameter(first.to(device, dtype))
        hidden = work.geometry.hidden
        self.B = nn.Parameter(torch.zeros(work.lora_rank, hidden, dtype=dtype, device=device))

    def forward(self, x_BTX: Tensor) -> Tensor:
        factor_B = x_BTX.new_ones(x_BTX.shape[0], 1, 1)
        return torch.bmm(x_BTX, (self.A @ self.B) * factor_B)


def authors(work: Work, pace: Pace) -> Weights:
    """The authors' loop as paper.md describes it: every step a second forward pass without the
    adapter, logits of all positions, adapter and optimiser state in the base's dtype, several waits
    for the device, a printed line and an appended one.

    Their adapter reads the MLP's input; here it reads down_proj's, as everyone's does.
    """
    tokenizer = tokenizer_of(work)
    model = load_model(work)
    base = FastBase(model, tokenizer, (work.placement,))
    adapter = _ProductAdapter(work, model.dtype, model.device)
    optimizer = torch.optim.AdamW(
        adapter.parameters(), lr=work.recipe.learning_rate, weight_decay=0
    )
    decay = _linear(optimizer, work)
    with tempfile.TemporaryDirectory() as folder:
        for step, batch in enumerate(_batches(work, records_of(work, tokenizer))):
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            with base.with_adapter(lambda _site, x: adapter(x)):
                loss = model(**batch).loss
            with torch.no_grad():
                reference = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
            tokens = int((batch["labels"] != -100).sum().item())
            line = [step, loss.item(), reference.item(), 1.0, tokens]
            print(*line, file=sys.stderr)
            with (Path(folder) / "metrics.csv").open("a", newline="") as file:
                csv.writer(file).writerow(line)
            pace.stepped()
    return adapter.A.detach(), adapter.B.detach()


def peft_deepspeed(work: Work, pace: Pace) -> Weights:
    """PEFT's LoRA under a DeepSpeed engine of stage 0, one job a point."""
    # Before DeepSpeed loads: it picks the accelerator.
    from pmlray.backends.deepspeed.stepper import be_one_process

    import deepspeed  # isort: skip
    import deepspeed.ops

    be_one_process()
    # On Linux CPUs DeepSpeed would compile a shared-memory op with the system's C++ compiler.
    setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    tokenizer = tokenizer_of(work)
    model = peft_model(work, load_model(work))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=work.recipe.learning_rate, weight_decay=0)
    config: dict[str, object] = {
        "train_micro_batch_size_per_gpu": work.batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    if work.dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda wrapped: _linear(wrapped, work),
        config=config,
        dist_init_required=False,
    )
    for batch in _batches(work, records_of(work, tokenizer)):
        batch = {name: tensor.to(engine.device) for name, tensor in batch.items()}
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        pace.stepped()
    return peft_weights(work, model)


def _batches(work: Work, records: Sequence[Record]) -> Iterator[dict[str, Tensor]]:
    for step in range(work.train_steps):
        yield collate([records[i] for i in batch_at(work, len(records), step)])


def _linear(optimizer: torch.optim.Optimizer, work: Work) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / work.train_steps)
