"""Greedy decoding of records under one stored adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from pmlray.config.bases.own_model import longest_input
from pmlray.engine.adapters.stored_adapter import StoredAdapter
from pmlray.engine.evaluation.plain_greedy import answer_greedily, most_answer_tokens
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MAX_MICRO_BATCH_TOKENS
from pmlray.errors import DataError
from pmlray.memory import Record


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


@torch.no_grad()
def decode_records(
    base: BaseModel,
    adapter: StoredAdapter,
    records: Sequence[Record],
    ends: Collection[int],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[DecodedRecord, ...]:
    """Decode every record greedily under one adapter, until its answer ends or is cut off.

    Prompts of equal length are decoded together, so that none is padded. An answer is cut off
    after `most_answer_tokens`, or where the model's context is full.

    Args:
        base: the model to decode with.
        adapter: made active on the base meanwhile.
        records: prompts and targets, as token ids.
        ends: tokens that end an answer.
        progress: called with the number of records decoded so far.

    Returns:
        One answer per record, in the order given.

    Raises:
        DataError: a record does not fit the model's context.
        ModelError: PEFT cannot use the adapter on this base.
    """
    context = longest_input(base.model.config, "the base")
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
    with adapter.attached(base) as base:
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
