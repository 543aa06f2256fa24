"""From a task to token ids: all three kinds, their prefixes and replicates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from pmlray.errors import DataError
from pmlray.memory import (
    MemorySet,
    TaskSource,
    build_memory,
    clean_token_ids,
    phonebook_records,
    prefix,
)

PAIRS = tuple((f"key {i}", f"The quick brown fox number {i * 7919}.") for i in range(40))
TASKS = {
    "random": TaskSource("long_context", 5, key_prompt="Recite."),
    "mixed": TaskSource("long_context", 5, 40, "Recite.", "The lazy dog sleeps. " * 400),
    "phonebook": TaskSource("phonebook", 5),
    "records": TaskSource("records", 5, pairs=PAIRS),
}


def render(query: str) -> list[int]:
    return [1, *query.encode(), 2]


def build(
    tokenizer: Tokenizer, task: TaskSource, sequence: int = 0, length: int = 300
) -> MemorySet:
    return build_memory(task, sequence, length, tokenizer, render)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("sequence", [0, 2])
def test_shorter_sets_are_prefixes_and_fit(tokenizer: Tokenizer, name: str, sequence: int) -> None:
    longest = build(tokenizer, TASKS[name], sequence)
    assert prefix(longest, 300) == longest
    flat_longest = [t for record in longest.records for t in record.target_ids]
    for seq_len in (299, 150, 40):
        memory = prefix(longest, seq_len)
        flat = [t for record in memory.records for t in record.target_ids]
        assert flat == flat_longest[: len(flat)]
        assert memory.supervised_tokens == len(flat) <= seq_len
        assert prefix(prefix(longest, 200), seq_len) == memory if seq_len <= 200 else True
    with pytest.raises(DataError, match="seq_len 301 is longer than the set's 300 tokens"):
        prefix(longest, 301)


@pytest.mark.parametrize("name", TASKS)
def test_a_build_repeats_and_replicates_differ(tokenizer: Tokenizer, name: str) -> None:
    sets = [build(tokenizer, TASKS[name], sequence) for sequence in range(3)]
    assert build(tokenizer, TASKS[name], 1) == sets[1]
    other_seed = build(tokenizer, replace(TASKS[name], data_seed=6), 1)
    hashes = {memory.content_hash for memory in [*sets, other_seed]}
    assert len(hashes) == 4


def test_long_context_cuts_at_any_token(tokenizer: Tokenizer) -> None:
    memory = build(tokenizer, TASKS["random"])
    (record,) = memory.records
    assert record.prompt_ids == tuple(render("Recite."))
    assert set(record.target_ids) <= set(clean_token_ids(tokenizer).tolist())
    assert [prefix(memory, n).supervised_tokens for n in (1, 17, 300)] == [1, 17, 300]


def test_long_context_keeps_the_text_ids_between_the_random_ones(tokenizer: Tokenizer) -> None:
    task = replace(TASKS["mixed"], random_ratio=0)
    text = task.text
    assert text is not None
    (record,) = build(tokenizer, task, sequence=1, length=100).records
    assert record.target_ids == tuple(tokenizer.encode(text).ids[100:200])


def test_phonebook_targets_are_the_numbers_alone(tokenizer: Tokenizer) -> None:
    memory = build(tokenizer, TASKS["phonebook"])
    book = phonebook_records(len(memory.records), seed=5)
    for record, (name, number) in zip(memory.records, book, strict=True):
        assert record.prompt_ids == tuple(render(f"{name}:"))
        assert record.target_ids == tuple(tokenizer.encode(number, add_special_tokens=False).ids)
        assert tokenizer.decode(list(record.target_ids)) == number


def test_records_keep_file_order_at_sequence_zero_and_permute_it_after(
    tokenizer: Tokenizer,
) -> None:
    total = sum(len(tokenizer.encode(target).ids) for _, target in PAIRS)
    in_order = build(tokenizer, TASKS["records"], 0, total)
    permuted = build(tokenizer, TASKS["records"], 1, total)
    assert [r.prompt_ids for r in in_order.records] == [tuple(render(q)) for q, _ in PAIRS]
    assert permuted.records != in_order.records
    assert set(permuted.records) == set(in_order.records)


def test_only_the_prompts_within_reach_are_rendered(tokenizer: Tokenizer) -> None:
    rendered = []

    def render_and_count(query: str) -> list[int]:
        rendered.append(query)
        return render(query)

    memory = build_memory(TASKS["records"], 0, 60, tokenizer, render_and_count)
    assert len(rendered) <= len(memory.records) + 1


def test_one_record_is_a_long_text_cut_to_the_length(tokenizer: Tokenizer) -> None:
    """As the authors' long-context files, each one question and tens of thousands of tokens."""
    text = " ".join(f"{n} quick brown foxes" for n in range(3000))
    ids = tuple(tokenizer.encode(text).ids)
    assert len(ids) > 20_000
    task = TaskSource("records", 5, pairs=(("Recite.", text),))
    memory = build(tokenizer, task, 0, 300)
    (record,) = memory.records
    assert record.target_ids == ids[:300] and record.prompt_ids == tuple(render("Recite."))
    assert build(tokenizer, task, 1, 300) == memory and memory.unfilled_tokens == 0
    assert prefix(memory, 7).records[0].target_ids == ids[:7]
    assert build(tokenizer, task, 0, len(ids)).records[0].target_ids == ids
    with pytest.raises(DataError, match=f"1 records hold {len(ids)} target tokens"):
        build(tokenizer, task, 0, len(ids) + 1)
    # Of several, each is whole.
    several = TaskSource("records", 5, pairs=(("Recite.", text), ("a", "b")))
    with pytest.raises(DataError, match="holds no whole record"):
        build(tokenizer, several, 0, 300)


def test_data_too_short_are_refused_with_their_size(tokenizer: Tokenizer) -> None:
    total = sum(len(tokenizer.encode(target).ids) for _, target in PAIRS)
    with pytest.raises(DataError, match=f"40 records hold {total} target tokens"):
        build(tokenizer, TASKS["records"], 0, total + 1)
    with pytest.raises(DataError, match="the base text holds"):
        build(tokenizer, TASKS["mixed"], 0, 100_000)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (TaskSource("long_context", 0), "needs a key_prompt"),
        (TaskSource("long_context", 0, 20, "Recite."), "none was given"),
        (TaskSource("records", 0), "at least one"),
        (TaskSource("records", 0, pairs=()), "at least one"),
    ],
)
def test_a_task_that_lacks_its_source_is_refused(
    tokenizer: Tokenizer, task: TaskSource, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build(tokenizer, task)


@pytest.mark.parametrize("name", TASKS)
def test_a_length_below_one_is_refused(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(DataError, match="at least 1"):
        build(tokenizer, TASKS[name], length=0)
