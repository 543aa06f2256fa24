"""Records in JSON lines and in JSON arrays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.memory import read_records

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
texts = texts.filter(str.strip)


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
        texts,
        texts,
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
        ('{"query": "q", "target": "a\\u0000"}', "target holds a NUL character; remove it"),
        (b'{"query": "q", "target": "a\0"}', "holds a NUL byte"),
        ('{"query": "q"}', "found: query"),
        (
            '{"query": "q", "matching": "t"}',
            "query and target or question and matching or question and answer",
        ),
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


ROWS = [{"query": "a [1], {2}:", "target": "1\n2"}, {"query": "b", "target": "\u2028é"}]


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_has_the_records_that_json_reads(
    tmp_path: Path, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path / "a.json"
    path.write_text(f" \n{json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)}\n")
    wanted = [(row["query"], row["target"]) for row in json.loads(path.read_text())]
    assert list(read_records(path)) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"query": "a", "target": "b"},\n\n{"query": "c"}]', "line 4: needs the fields"),
        ('[\n{"query": "a", "target": "b"},\n"c"]', "line 3: expected a JSON object, found str"),
        ('[\n{"query": "a", "target": "b"}\n{"query": "c"}]', "line 3: expected a comma"),
        ('[\n{"query": "a", "target": "b"},\n]', "line 3: the array of records is no JSON here"),
        ('[{"query": "a", "target": "b"}', "line 1: expected a comma or the end"),
        ('[{"query": "a",\n', "line 1: the array of records is no JSON"),
        ('[{"query": "a", "target": "b"}]\n[]', "line 1: text follows the end of the array"),
        ("[" * 100_000, "line 1: the array of records is no JSON"),
        ("[ ]", "holds no records"),
        ('{\n"data": []}', "line 1: not a JSON object .* or all in one JSON array"),
    ],
)
def test_what_is_wrong_with_an_array_is_said_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_records(path)
