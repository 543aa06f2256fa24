"""Whole-record prefixes, and identity of a set."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.memory import MemorySet, Record, prefix, take_tokens

lengths_of_targets = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def records_of(lengths: list[int]) -> list[Record]:
    return [Record((1000 + i,), tuple(range(n))) for i, n in enumerate(lengths)]


@settings(deadline=None)
@given(lengths_of_targets, st.data())
def test_take_tokens_is_the_longest_prefix_that_fits(
    lengths: list[int], data: st.DataObject
) -> None:
    seq_len = data.draw(st.integers(lengths[0], sum(lengths)))
    records = records_of(lengths)
    taken = take_tokens(records, seq_len)
    fitting = [n for n, total in enumerate(accumulate(lengths), start=1) if total <= seq_len]
    assert taken.records == tuple(records[: fitting[-1]])
    assert taken.supervised_tokens == sum(lengths[: fitting[-1]])
    assert taken.unfilled_tokens == seq_len - taken.supervised_tokens


@settings(deadline=None)
@given(lengths_of_targets, st.data())
def test_prefix_of_a_longer_set_is_the_set_of_that_length(
    lengths: list[int], data: st.DataObject
) -> None:
    longest = data.draw(st.integers(lengths[0], sum(lengths)))
    shorter = data.draw(st.integers(lengths[0], longest))
    records = records_of(lengths)
    assert prefix(take_tokens(records, longest), shorter) == take_tokens(records, shorter)


def test_a_length_beyond_the_data_is_refused_with_the_tokens_there_are() -> None:
    with pytest.raises(DataError, match=r"seq_len 8 .* 2 records hold 7 target tokens"):
        take_tokens(records_of([3, 4]), 8)
    with pytest.raises(DataError, match="seq_len 1 is longer"):
        take_tokens([], 1)
    with pytest.raises(DataError, match=r"seq_len 8 .* 7 tokens"):
        prefix(take_tokens(records_of([3, 4]), 7), 8)


def test_a_length_below_the_first_record_is_refused_with_its_size() -> None:
    with pytest.raises(DataError, match=r"seq_len 2 .* first target has 3 tokens"):
        take_tokens(records_of([3, 4]), 2)
    with pytest.raises(DataError, match=r"seq_len 2 .* first target has 3 tokens"):
        prefix(take_tokens(records_of([3, 4]), 7), 2)


@pytest.mark.parametrize("seq_len", [0, -5])
def test_a_length_below_one_is_refused(seq_len: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        take_tokens(records_of([3]), seq_len)
    with pytest.raises(DataError, match="at least 1"):
        prefix(MemorySet(tuple(records_of([3])), whole_records=False), seq_len)


def test_a_record_without_prompt_or_target_is_refused() -> None:
    with pytest.raises(DataError, match="prompt of 0 tokens"):
        Record((), (1,))
    with pytest.raises(DataError, match="target of 0 tokens"):
        Record((1,), ())


def test_content_hash_tells_every_id_and_every_boundary_apart() -> None:
    sets = [
        [Record((1, 2), (3, 4))],
        [Record((1,), (2, 3, 4))],
        [Record((1, 2), (34,))],
        [Record((1, 2), (3,)), Record((1, 2), (4,))],
        [Record((1, 2), (4,)), Record((1, 2), (3,))],
        [Record((12,), (3, 4))],
    ]
    hashes = [MemorySet(tuple(records)).content_hash for records in sets]
    assert len(set(hashes)) == len(sets)
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
    assert MemorySet((Record((1, 2), (3, 4)),)).content_hash == hashes[0]
