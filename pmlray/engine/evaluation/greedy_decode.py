"""Greedy decoding of records under one stored adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import MLP_CONFIG_FILE, WEIGHTS_FILE, load_mlp_adapter
from pmlray.engine.evaluation.plain_greedy import answer_greedily, most_answer_tokens
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MAX_MICRO_BATCH_TOKENS
from pmlray.errors import DataError, ModelError
from pmlray.memory import Record

PEFT_CONFIG_FILE = "adapter_config.json"
# Errors of reading a damaged or foreign adapter folder.
DAMAGE = (
    SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter read from its folder; `weights`: A (X, r) and B (r, D), scale included in B."""

    base_model: str
    probe: Probe
    weights: tuple[Tensor, Tensor]

    @property
    def lora_rank(self) -> int:
        """Rank r of the adapter."""
        return self.weights[0].shape[1]


@dataclass(frozen=True, slots=True)
class DecodedRecord:
    """Greedy answer to one record, until it ended or was cut off.

    `answer_ids`: without the end token; `ended`: False where the answer was cut off.
    """

    record: Record
    answer_ids: tuple[int, ...]
    ended: bool

    @property
    def answered(self) -> bool:
        """True if the answer begins with the target, token for token."""
        return self.answer_ids[: len(self.record.target_ids)] == self.record.target_ids

    @property
    def recalled(self) -> bool:
        """True if the answer is the target, and ends there."""
        return self.ended and self.answer_ids == self.record.target_ids


def read_adapter(folder: Path) -> StoredAdapter:
    """Read an adapter folder of pmlray's `mlp` format, or of PEFT's for one layer's `down_proj`.

    Args:
        folder: holds `pmlray_adapter.json` or `adapter_config.json`, and the weights.

    Returns:
        The adapter: A (X, r) and B (r, D), scale included in B, with its base model and probe.

    Raises:
        ModelError: the folder holds no such adapter, or a damaged one; the message says what it
            holds and what to give.
    """
    try:
        if (folder / MLP_CONFIG_FILE).is_file():
            config = json.loads((folder / MLP_CONFIG_FILE).read_text(encoding="utf-8"))
            return _checked(folder, StoredAdapter(config["base_model"], *load_mlp_adapter(folder)))
        if (folder / PEFT_CONFIG_FILE).is_file():
            return _checked(folder, _read_peft(folder))
    except (OSError, *DAMAGE) as error:
        raise ModelError(f"{folder}: the adapter cannot be read ({error!r})") from error
    raise ModelError(
        f"{folder} holds no adapter: it has neither {MLP_CONFIG_FILE} nor {PEFT_CONFIG_FILE}; give"
        " the adapter folder that pmlray size wrote, or a run's in a store's adapters folder"
    )


def _checked(folder: Path, adapter: StoredAdapter) -> StoredAdapter:
    shapes = [tuple(w.shape) for w in adapter.weights]
    (a, b), numbers = shapes, all(w.is_floating_point() for w in adapter.weights)
    if not (len(a) == len(b) == 2 and a[1] == b[0] > 0 and numbers):
        raise ModelError(f"{folder}: {a} and {b} are no factors of one adapter")
    if not isinstance(adapter.base_model, str):
        raise ModelError(f"{folder}: the adapter does not say which base model it is of")
    return adapter


def check_fits(base: BaseModel, adapter: StoredAdapter) -> None:
    """Check that the adapter's widths are those of the base at its layer; ModelError otherwise."""
    a, b = adapter.weights
    found, wanted = (a.shape[0], b.shape[1]), (base.adapter_width, base.model.config.hidden_size)
    if found != wanted:
        raise ModelError(
            f"the adapter maps {found[0]} to {found[1]} values, the base model's"
            f" {adapter.probe.placement} {wanted[0]} to {wanted[1]}: it belongs to another model,"
            f" {adapter.base_model} by its own account"
        )


@torch.no_grad()
def decode_records(
    base: BaseModel,
    weights: tuple[Tensor, Tensor],
    records: Sequence[Record],
    ends: Collection[int],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[DecodedRecord, ...]:
    """Decode every record greedily under one adapter, until its answer ends or is cut off.

    Prompts of equal length are decoded together, so that none is padded. An answer is cut off
    after `most_answer_tokens`, or where the model's context is full.

    Args:
        base: the model to decode with.
        weights: A (X, r) and B (r, D), for an adapter input of width X and hidden size D.
        records: prompts and targets, as token ids.
        ends: tokens that end an answer.
        progress: called with the number of records decoded so far.

    Returns:
        One answer per record, in the order given.

    Raises:
        DataError: a record does not fit the model's context.
    """
    a, b = (w.to(base.device) for w in weights)
    context = base.model.config.max_position_embeddings
    same_prompt: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        needed = len(record.prompt_ids) + len(record.target_ids)
        if needed > context:
            raise DataError(
                f"record {i + 1} needs {needed} tokens with its prompt, but the model reads at most"
                f" {context}; shorten it"
            )
        same_prompt.setdefault(len(record.prompt_ids), []).append(i)
    answers: dict[int, tuple[int, ...]] = {}
    most = [min(most_answer_tokens(r), context - len(r.prompt_ids)) for r in records]
    with base.with_adapter(lambda x_RTX: x_RTX.to(a.dtype) @ a @ b):
        for n_prompt, rows in same_prompt.items():
            # Sorted, so that records decoded together end at about the same step.
            rows.sort(key=lambda i: len(records[i].target_ids))
            per_call = max(1, MAX_MICRO_BATCH_TOKENS // (n_prompt + most[rows[-1]]))
            for start in range(0, len(rows), per_call):
                part = rows[start : start + per_call]
                own, limits = [records[i] for i in part], [most[i] for i in part]
                found = answer_greedily(base.model, own, ends, limits)
                answers.update(zip(part, found, strict=True))
                progress(len(answers))
    return tuple(_decoded(record, answers[i], ends) for i, record in enumerate(records))


def _decoded(record: Record, ids: tuple[int, ...], ends: Collection[int]) -> DecodedRecord:
    # An end token that completes the target belongs to it.
    ended = ids[-1] in ends and ids != record.target_ids[: len(ids)]
    return DecodedRecord(record, ids[:-1] if ended else ids, ended)


def _read_peft(folder: Path) -> StoredAdapter:
    config: dict[str, Any] = json.loads((folder / PEFT_CONFIG_FILE).read_text(encoding="utf-8"))
    layers, named = config["layers_to_transform"], config["target_modules"]
    layers = [layers] if isinstance(layers, int) else layers or []
    modules = [named] if isinstance(named, str) else sorted(named)
    if modules != ["down_proj"] or len(layers) != 1:
        raise ModelError(
            f"{folder}: the adapter sits at {', '.join(modules)} of layers {layers or 'all'};"
            " pmlray checks those of one layer's down_proj"
        )
    tensors = load_file(folder / WEIGHTS_FILE)
    at = f"base_model.model.model.layers.{layers[0]}.mlp.down_proj"
    a, b = tensors[f"{at}.lora_A.weight"].T, tensors[f"{at}.lora_B.weight"].T
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    probe = Probe(placement="down_proj", layer=layers[0])
    return StoredAdapter(
        config["base_model_name_or_path"], probe, (a.contiguous(), scale * b.contiguous())
    )
