"""Whole-record prefixes, identity of a set, and the JSONL reader."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.memory import MemorySet, Record, prefix, read_records, take_tokens

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


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def test_reads_both_field_names_and_ignores_other_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path / "book.jsonl",
        '{"id": 298864, "query": "Jerry Becerra:", "target": "9100672710", "target_len": 10}\r',
        "",
        '{"question": "Recite.", "matching": "two\u2028lines é", "not_matching": ""}',
        '{"query": "Jerry Becerra:", "target": "9100672710"}',
        "",
    )
    assert read_records(path) == (
        ("Jerry Becerra:", "9100672710"),
        ("Recite.", "two\u2028lines é"),
        ("Jerry Becerra:", "9100672710"),
    )


@settings(deadline=None)
@given(
    pairs=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(str.strip),
        st.text(min_size=1, max_size=6).filter(str.strip),
        min_size=1,
        max_size=4,
    ),
    ascii_only=st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, str], ascii_only: bool
) -> None:
    lines = [
        json.dumps({"query": q, "target": t}, ensure_ascii=ascii_only) for q, t in pairs.items()
    ]
    path = write(tmp_path_factory.getbasetemp() / "round_trip.jsonl", *lines)
    assert read_records(path) == tuple(pairs.items())


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + b'{"query": "q", "target": "t"}')
    assert read_records(path) == (("q", "t"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "target": "t"', "not a JSON object"),
        (b'{"query": "q", "target": "\xff"}', "UTF-8"),
        ("[" * 100_000, "not a JSON object"),
        ('["q", "t"]', "found list"),
        ("null", "found NoneType"),
        ("{}", "found: none"),
        ('{"query": "q"}', "found: query"),
        ('{"query": "q", "matching": "t"}', "query and target or question and matching"),
        ('{"query": "q", "target": 9100672710}', "target must be text, found int"),
        ('{"query": null, "target": "t"}', "query must be text, found NoneType"),
        ('{"query": "q", "target": " "}', "target is empty"),
        ('{"query": "", "target": "t"}', "query is empty"),
        ('{"query": "q", "target": "\\ud800"}', "surrogate"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", '{"query": "fine", "target": "fine"}', "", line)
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3: ") as caught:
        read_records(path)
    assert message in str(caught.value)


def test_two_targets_for_one_query_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "twice.jsonl",
        '{"query": "a", "target": "1"}',
        '{"query": "b", "target": "1"}',
        '{"question": "a", "matching": "2"}',
    )
    with pytest.raises(DataError, match=r"line 3: the query .a. .* line 1"):
        read_records(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no records"):
        read_records(write(tmp_path / "empty.jsonl", content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: cannot be read"):
        read_records(tmp_path / "absent.jsonl")
