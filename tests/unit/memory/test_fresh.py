"""Fresh text: of the task's kind, and none of what any sequence of the search holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from pmlray.memory import (
    FRESH_SEQUENCE_ID,
    Record,
    TaskSource,
    build_memory,
    clean_token_ids,
    encode_texts,
    fresh_records,
    replaced_positions,
)

TEXT = " ".join(f"{i} foxes and {i * 7} dogs" for i in range(60))


def fresh(
    task: TaskSource, tokenizer: Tokenizer, seq_len: int, n_tokens: int, used: int = 0
) -> tuple[Record, ...]:
    return fresh_records(
        task, seq_len, n_tokens, used, tokenizer, lambda text: tokenizer.encode(text).ids
    )


def trained_on(task: TaskSource, tokenizer: Tokenizer, sequence_id: int, n: int) -> set[tuple]:
    memory = build_memory(task, sequence_id, n, tokenizer, lambda text: tokenizer.encode(text).ids)
    return {record.target_ids for record in memory.records}


@pytest.mark.parametrize(
    ("seq_len", "n_tokens", "lengths"),
    [(32, 128, [32] * 4), (50, 128, [50, 50]), (128, 128, [128]), (4000, 128, [128]), (9, 5, [5])],
)
def test_a_long_context_comes_in_the_lengths_that_were_trained(
    tokenizer: Tokenizer, seq_len: int, n_tokens: int, lengths: list[int]
) -> None:
    task = TaskSource("long_context", 0, key_prompt="Recite:")
    found = fresh(task, tokenizer, seq_len, n_tokens)
    assert [len(r.target_ids) for r in found] == lengths
    assert {r.prompt_ids for r in found} == {tuple(tokenizer.encode("Recite:").ids)}
    assert len({r.target_ids for r in found}) == len(found)
    clean = set(clean_token_ids(tokenizer).tolist())
    assert all(clean.issuperset(r.target_ids) for r in found)


def test_no_sequence_of_a_search_is_fresh(tokenizer: Tokenizer) -> None:
    for kind in ("long_context", "phonebook"):
        task = TaskSource(kind, 0, key_prompt="Recite:")
        found = {r.target_ids for r in fresh(task, tokenizer, 40, 400)}
        for sequence_id in (0, 1, 2, FRESH_SEQUENCE_ID - 1):
            assert not found & trained_on(task, tokenizer, sequence_id, 40)
        assert found == {r.target_ids for r in fresh(task, tokenizer, 40, 400)}
        other = replace(task, data_seed=1)
        assert not found & {r.target_ids for r in fresh(other, tokenizer, 40, 400)}


def test_base_text_is_taken_from_its_unused_end(tokenizer: Tokenizer) -> None:
    task = TaskSource("long_context", 0, random_ratio=40, key_prompt="Recite:", text=TEXT)
    (text_ids,) = encode_texts(tokenizer, [TEXT])
    used = len(text_ids) - 75
    found = fresh(task, tokenizer, 30, 120, used)
    # Two stretches of 30 fit into the 75 tokens that no sequence is dealt.
    kept = ~replaced_positions(30, 40)
    assert len(found) == 2
    for copy, record in enumerate(found):
        end = len(text_ids) - 30 * copy
        stretch = np.array(text_ids[end - 30 : end])
        assert np.array(record.target_ids)[kept].tolist() == stretch[kept].tolist()
        assert record.target_ids != tuple(stretch)


def test_where_nothing_is_fresh_there_are_no_records(tokenizer: Tokenizer) -> None:
    own = TaskSource("records", 0, pairs=(("a", "b"), ("c", "d")))
    assert fresh(own, tokenizer, 10, 100) == ()
    used_up = TaskSource("long_context", 0, random_ratio=0, key_prompt="Recite:", text=TEXT)
    n_text = len(encode_texts(tokenizer, [TEXT])[0])
    assert fresh(used_up, tokenizer, 30, 120, n_text - 29) == ()
    assert fresh(used_up, tokenizer, 30, 120, n_text + 500) == ()


@pytest.mark.parametrize("n_tokens", [1, 100])
def test_a_phone_book_comes_in_whole_entries(tokenizer: Tokenizer, n_tokens: int) -> None:
    found = fresh(TaskSource("phonebook", 0), tokenizer, 20, n_tokens)
    assert all(tokenizer.decode(r.target_ids).isdigit() for r in found)
    assert all(len(tokenizer.decode(r.target_ids)) == 10 for r in found)
    lengths = [len(r.target_ids) for r in found]
    assert sum(lengths[:-1]) < n_tokens <= sum(lengths)
