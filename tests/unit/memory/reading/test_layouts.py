"""Layouts of records as other tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pmlray.errors import DataError
from pmlray.memory import Columns, Query, plain_query, read_records

TURNS = [("system", "Be short."), ("user", "a?"), ("assistant", "b"), ("user", "c?")]


def read(folder: Path, row: dict[str, Any], columns: Columns | None = None) -> tuple[Query, str]:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (pair,) = read_records(path, columns)
    return pair


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(role, role), "value": content} for role, content in turns]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "a", "completion": " b"}, ("a", " b")),
        ({"question": "a", "answer": "b", "context": "c"}, ("a", "b")),
        ({"question": "a", "matching": "b", "not_matching": ""}, ("a", "b")),
        ({"instruction": "a", "output": "b"}, ("a", "b")),
        ({"instruction": "a", "input": "", "output": "b", "text": "t"}, ("a", "b")),
        ({"instruction": "a", "input": None, "output": "b", "history": []}, ("a", "b")),
        ({"instruction": "a", "input": "x y", "output": "b"}, ("a\nx y", "b")),
        ({"messages": messages(*TURNS, ("assistant", "d")), "prompt": "c?"}, (tuple(TURNS), "d")),
        ({"conversations": sharegpt(*TURNS, ("assistant", "d"))}, (tuple(TURNS), "d")),
        (
            {"prompt": messages(*TURNS), "completion": messages(("assistant", "d"))},
            (tuple(TURNS), "d"),
        ),
    ],
)
def test_each_layout_gives_what_comes_before_the_answer_and_the_answer(
    tmp_path: Path, row: dict[str, Any], pair: tuple[Query, str]
) -> None:
    assert read(tmp_path, row) == pair


def test_named_columns_are_taken_whatever_layout_fits(tmp_path: Path) -> None:
    row = {"query": "a", "target": "b", "Q": "c", "the answer": "d"}
    assert read(tmp_path, row, Columns("Q", "the answer")) == ("c", "d")
    assert read(tmp_path, row, Columns("target", "query")) == ("b", "a")
    with pytest.raises(DataError, match="line 1: needs the fields Q and R; found: query, target"):
        read(tmp_path, row, Columns("Q", "R"))
    with pytest.raises(DataError, match="line 1: b must be text, found int"):
        read(tmp_path, {"a": "x", "b": 3}, Columns("a", "b"))


def test_named_columns_tell_the_separator_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,c;Q;A\n1,2;x;y\n")
    assert read_records(path, Columns("Q", "A")) == (("x", "y"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "a", "target": "b", "prompt": "a", "completion": "b"},
            "fields of 2 layouts, query and target; prompt and completion: --columns query=NAME",
        ),
        ({"question": "a", "answer": "b", "matching": "c"}, "fields of 2 layouts"),
        ({"messages": [], "conversations": []}, "fields of 2 layouts, messages; conversations"),
        ({"messages": "a"}, "messages must be a list of turns, .*; found str"),
        ({"messages": [3]}, "messages, turn 1 must be an object with role and content"),
        ({"messages": [{"from": "a"}]}, "turn 1 must be an object with role and content"),
        ({"messages": []}, "messages must end with the assistant's turn.*its turns: none"),
        ({"messages": messages(("assistant", "a"))}, "have one before it; its turns: assistant"),
        ({"messages": messages(*TURNS)}, "its turns: system, user, assistant, user"),
        ({"messages": messages(("tool", "a"), ("assistant", "b"))}, "turn 1: role is 'tool'"),
        ({"messages": messages(("user", "a"), ("assistant", ""))}, "turn 2: content is empty"),
        ({"conversations": messages(("user", "a"))}, "an object with from and value"),
        ({"instruction": "a", "output": "b", "system": "s"}, "system is not read"),
        ({"conversations": sharegpt(*TURNS), "tools": "[]"}, "tools is not read"),
        ({"prompt": messages(*TURNS), "completion": "d"}, "prompt must be text, found list"),
    ],
)
def test_what_does_not_fit_a_layout_is_refused_with_its_line(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1: .*{message}"):
        read(tmp_path, row)


def test_a_plain_prompt_is_a_text_or_one_user_turn() -> None:
    assert plain_query("a", "f") == plain_query((("user", "a"),), "f") == "a"
    for turns in (TURNS, [("system", "a")], [("user", "a"), ("user", "b")]):
        with pytest.raises(DataError, match=r"f, line 2: .* --prompt-format chat"):
            plain_query(tuple(turns), "f, line 2")
