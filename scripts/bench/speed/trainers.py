"""Ways that a Trainer drives: PEFT with transformers' own, and with TRL's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from pmlray.memory import Record
from scripts.bench.speed.pace import Pace
from scripts.bench.speed.work import (
    Weights,
    Work,
    batch_at,
    collate,
    load_model,
    peft_model,
    peft_weights,
    records_of,
    tokenizer_of,
)


class _InOrder(Dataset[Record]):
    """The records of all steps, one after another."""

    def __init__(self, work: Work, records: Sequence[Record]) -> None:
        self._work, self._records = work, records
        self._size = min(work.batch_size, len(records))

    def __len__(self) -> int:
        return self._work.train_steps * self._size

    def __getitem__(self, position: int) -> Record:
        step, slot = divmod(position, self._size)
        return self._records[batch_at(self._work, len(self._records), step)[slot]]


class _Counted(TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._pace.stepped()


def _arguments(work: Work, folder: str, n_records: int) -> dict[str, Any]:
    """Of both trainers: the same steps, and nothing written or reported on the way."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": min(work.batch_size, n_records),
        "max_steps": work.train_steps,
        "learning_rate": work.recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # The base is in its dtype already, and PEFT keeps adapters in fp32.
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
    }


def peft_trainer(work: Work, pace: Pace) -> Weights:
    """PEFT's LoRA under transformers' Trainer, one adapter."""
    records = records_of(work, tokenizer_of(work))
    model = peft_model(work, load_model(work))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(**_arguments(work, folder, len(records))),
            train_dataset=_InOrder(work, records),
            data_collator=collate,
            callbacks=[_Counted(pace)],
        ).train()
    return peft_weights(work, model)


def trl_sft(work: Work, pace: Pace) -> Weights:
    """PEFT's LoRA under TRL's SFTTrainer, one adapter; ImportError where TRL is not installed."""
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer

    tokenizer = tokenizer_of(work)
    records = records_of(work, tokenizer)
    in_order = _InOrder(work, records)
    table = Table.from_dict({"at": list(range(len(in_order))), "input_ids": [[0]] * len(in_order)})
    model = peft_model(work, load_model(work))
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            model=model,
            args=SFTConfig(
                **_arguments(work, folder, len(records)),
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            processing_class=tokenizer,
            train_dataset=table,
            data_collator=lambda rows: collate([in_order[row["at"]] for row in rows]),
            callbacks=[_Counted(pace)],
        ).train()
    return peft_weights(work, model)
