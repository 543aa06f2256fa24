"""Token ids that one adapter memorises, built from a task, and their shorter prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from pmlray.errors import DataError
from pmlray.memory.linear_rule import MAX_TRAINED, rule_pairs
from pmlray.memory.long_context import long_context_ids
from pmlray.memory.phonebook import phonebook_records, phonebook_size
from pmlray.memory.reading.dialogue import Query, query_text
from pmlray.memory.records import MemorySet, Record, check_seq_len, longest_prefix, take_tokens
from pmlray.memory.tokens import clean_token_ids, encode_texts

TaskKind = Literal["long_context", "phonebook", "records", "linear_rule"]
PromptRenderer = Callable[[Query], list[int]]


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Source of the text to memorise.

    `data_seed` seeds every draw. Only long_context reads `random_ratio` (percent of random tokens),
    `key_prompt` (the user message that asks for the sequence) and `text` (the base text, not needed
    at random_ratio 100). Only records reads `pairs` of (query, target), and `repeats`, how often an
    epoch of training shows each of them; None: once.
    """

    kind: TaskKind
    data_seed: int
    random_ratio: int = 100
    key_prompt: str = ""
    text: str | None = None
    pairs: tuple[tuple[Query, str], ...] | None = None
    repeats: tuple[int, ...] | None = None

    @property
    def has_conversations(self) -> bool:
        """Whether queries are turns of conversations rather than texts."""
        return any(not isinstance(query, str) for query, _ in self.pairs or ())


def build_memory(
    task: TaskSource,
    sequence_id: int,
    max_seq_len: int,
    tokenizer: Tokenizer,
    render_prompt: PromptRenderer,
    end_id: int | None = None,
) -> MemorySet:
    """Build the text that replicate sequence_id of a task memorises, of max_seq_len supervised
    tokens.

    sequence_id: 0, 1, ...; another random draw, stretch of text, phone book or order of records (0
    keeps the records' own order). max_seq_len: the longest length of a search; `prefix` gives the
    shorter ones. render_prompt: a query to the prompt's token ids, up to the place where the answer
    begins. end_id: the token that is to follow every target; None: no end is supervised.
    Records with the same prompt and target ids are one record; a file of one record is a long text,
    whose target is cut to the length, the same in every sequence. DataError: the task lacks what
    its kind needs, or holds fewer tokens than max_seq_len, or two records have one prompt and
    different targets. Source: the tasks of arXiv 2605.30260.
    """
    check_seq_len(max_seq_len)
    if task.kind == "long_context":
        return _long_context(task, sequence_id, max_seq_len, tokenizer, render_prompt, end_id)
    if task.kind == "phonebook":
        pairs = phonebook_pairs(task, sequence_id, max_seq_len, tokenizer)
    elif task.kind == "linear_rule":
        pairs = rule_pairs(MAX_TRAINED, task.data_seed, sequence_id)
    else:
        facts = _distinct(task, sequence_id, max_seq_len, tokenizer, render_prompt, end_id)
        if len(task.pairs or ()) == 1:
            return _beginning(facts[0], max_seq_len)
        return take_tokens(facts, max_seq_len)
    return _whole_records(pairs, max_seq_len, tokenizer, render_prompt, end_id)


def phonebook_pairs(
    task: TaskSource, sequence_id: int, seq_len: int, tokenizer: Tokenizer
) -> list[tuple[str, str]]:
    """Return the entries of one phone book, as (query, target), that hold at least seq_len
    tokens."""
    n = phonebook_size(seq_len, task.data_seed, sequence_id, partial(encode_texts, tokenizer))
    book = phonebook_records(n, task.data_seed, sequence_id)
    return [(f"{name}:", number) for name, number in book]


def prefix(memory: MemorySet, seq_len: int) -> MemorySet:
    """Return the first seq_len supervised tokens of a set: cut exactly, or after a whole record.

    seq_len: supervised tokens, 1 up to the length that the set was built for. DataError when it is
    longer than that, or too short for the first whole record.
    """
    check_seq_len(seq_len)
    longest = memory.supervised_tokens + memory.unfilled_tokens
    if seq_len > longest:
        raise DataError(
            f"seq_len {seq_len} is longer than the set's {longest} tokens; build it at the longest "
            "seq_len of the search"
        )
    if memory.whole_records:
        return longest_prefix(memory.records, seq_len)
    (record,) = memory.records
    return replace(memory, records=(replace(record, target_ids=record.target_ids[:seq_len]),))


def _long_context(
    task: TaskSource,
    sequence_id: int,
    max_seq_len: int,
    tokenizer: Tokenizer,
    render_prompt: PromptRenderer,
    end_id: int | None,
) -> MemorySet:
    if not task.key_prompt.strip():
        raise DataError("a long_context task needs a key_prompt that asks for the sequence")
    target_ids = long_context_ids(
        max_seq_len,
        clean_ids=clean_token_ids(tokenizer),
        random_ratio=task.random_ratio,
        data_seed=task.data_seed,
        sequence_id=sequence_id,
        text_ids=None if task.text is None else encode_texts(tokenizer, [task.text])[0],
    )
    record = Record(tuple(render_prompt(task.key_prompt)), target_ids, end_id)
    return MemorySet((record,), whole_records=False)


def _ordered(task: TaskSource, sequence_id: int) -> tuple[list[tuple[Query, str]], list[int]]:
    """Return the pairs of a records task in the order of a sequence, and their repeats."""
    if not task.pairs:
        raise DataError("a records task needs at least one (query, target) pair")
    repeats = task.repeats or (1,) * len(task.pairs)
    if sequence_id == 0:
        return list(task.pairs), list(repeats)
    seeds = np.random.SeedSequence(task.data_seed, spawn_key=(sequence_id,))
    order = np.random.default_rng(seeds).permutation(len(task.pairs)).tolist()
    return [task.pairs[i] for i in order], [repeats[i] for i in order]


def _distinct(
    task: TaskSource,
    sequence_id: int,
    max_seq_len: int,
    tokenizer: Tokenizer,
    render_prompt: PromptRenderer,
    end_id: int | None,
) -> list[Record]:
    """Return records that hold max_seq_len tokens, if there are as many, each fact once.

    A file's rows are told apart before, as far as that goes without its base's chat template.
    """
    pairs, repeats = _ordered(task, sequence_id)
    targets = encode_texts(tokenizer, [target for _, target in pairs])
    found: dict[tuple[int, ...], Record] = {}
    used = 0
    for (query, target), ids, n in zip(pairs, targets, repeats, strict=True):
        # A chat template costs far more than a length, so only the prompts within reach are
        # rendered, unless later ones may repeat them.
        if used >= max_seq_len and task.repeats is None:
            break
        record = Record(tuple(render_prompt(query)), ids, end_id, n)
        known = found.setdefault(record.prompt_ids, record)
        if known.target_ids != ids:
            raise DataError(
                f"the prompt of the query {query_text(query)!r}, target {target!r}, has the same"
                " tokens as that of an earlier record with another target; one prompt can have only"
                " one target to recall"
            )
        if known is record:
            used += len(ids)
        elif task.repeats is not None:
            found[record.prompt_ids] = replace(known, repeats=known.repeats + n)
    return list(found.values())


def _beginning(record: Record, seq_len: int) -> MemorySet:
    """Return the first seq_len target tokens of a file's only record, which may be cut anywhere.

    DataError where it holds fewer.
    """
    whole = take_tokens((record,), max(seq_len, len(record.target_ids)))
    return prefix(replace(whole, whole_records=False), seq_len)


def _whole_records(
    pairs: Sequence[tuple[str, str]],
    max_seq_len: int,
    tokenizer: Tokenizer,
    render_prompt: PromptRenderer,
    end_id: int | None,
) -> MemorySet:
    targets = encode_texts(tokenizer, [target for _, target in pairs])
    # A chat template costs far more than a length, so only the prompts within reach are rendered.
    totals = np.cumsum([len(ids) for ids in targets])
    n_needed = int(np.searchsorted(totals, max_seq_len)) + 1
    return take_tokens(
        [
            Record(tuple(render_prompt(query)), ids, end_id)
            for (query, _), ids in zip(pairs[:n_needed], targets[:n_needed], strict=True)
        ],
        max_seq_len,
    )
