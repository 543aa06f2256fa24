"""Records to memorise, as token ids: the set, and its whole-record prefixes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pmlray.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """Query to recall: the prompt's token ids and the supervised target's token ids.

    `end_id`: token that is to follow the target, at which generation stops; None: none is trained.
    `repeats`: how often an epoch of training shows it. DataError when prompt or target is empty:
    the first target token needs a position that predicts it.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_id: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        for name, ids in (("prompt", self.prompt_ids), ("target", self.target_ids)):
            if not ids:
                raise DataError(
                    f"a record has a {name} of 0 tokens; it needs at least 1: check the {name} "
                    "text and the chat template"
                )

    @property
    def supervised_ids(self) -> tuple[int, ...]:
        """Token ids that are trained: the target's, and the end where there is one."""
        return self.target_ids if self.end_id is None else (*self.target_ids, self.end_id)


@dataclass(frozen=True, slots=True)
class MemorySet:
    """Set of records that one adapter memorises.

    `whole_records`: shorter sets drop whole records; if False the set is one record whose target
    may be cut anywhere. `unfilled_tokens`: how far the set falls short of the length that was asked
    for because the next record was too long to fit.
    """

    records: tuple[Record, ...]
    whole_records: bool = True
    unfilled_tokens: int = 0

    @property
    def supervised_tokens(self) -> int:
        """Target tokens over all records, without their ends: the l that is measured."""
        return sum(len(record.target_ids) for record in self.records)

    @property
    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of all prompt and supervised ids, in order."""
        ids = [[record.prompt_ids, record.supervised_ids] for record in self.records]
        return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()[:16]


def check_seq_len(seq_len: int) -> None:
    """Raise DataError unless seq_len (supervised tokens) is at least 1."""
    if seq_len < 1:
        raise DataError(f"seq_len is {seq_len}; it counts supervised tokens and must be at least 1")


def take_tokens(records: Sequence[Record], seq_len: int) -> MemorySet:
    """Take the longest prefix of whole records with at most seq_len target tokens.

    records: in the order in which they are to be taken; seq_len: supervised tokens, at least 1.
    DataError when the records hold fewer than seq_len tokens or the first alone does not fit.
    Source: the PhoneBook lengths of arXiv 2605.30260, which count answer tokens and nest.
    """
    check_seq_len(seq_len)
    available = sum(len(record.target_ids) for record in records)
    if available < seq_len:
        raise DataError(
            f"seq_len {seq_len} is longer than the data: {len(records)} records hold {available} "
            f"target tokens, each fact once; use a seq_len of at most {available} or add records"
        )
    return longest_prefix(records, seq_len)


def longest_prefix(records: Sequence[Record], seq_len: int) -> MemorySet:
    """Take records as take_tokens does, where fewer than seq_len tokens in all are allowed.

    DataError when the first record alone has more than seq_len target tokens.
    """
    used = 0
    n_taken = 0
    for record in records:
        if used + len(record.target_ids) > seq_len:
            break
        used += len(record.target_ids)
        n_taken += 1
    if n_taken == 0:
        raise DataError(
            f"seq_len {seq_len} holds no whole record: the first target has "
            f"{len(records[0].target_ids)} tokens; use a seq_len of at least that"
        )
    return MemorySet(tuple(records[:n_taken]), unfilled_tokens=seq_len - used)
