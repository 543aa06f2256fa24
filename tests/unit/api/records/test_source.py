"""Records that a program holds, and columns as a command line names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pmlray
from pmlray.api.records.source import parse_columns, record_source
from pmlray.api.sizing.size import SizingPlan
from pmlray.config.bases.models import TINY
from pmlray.errors import DataError, SpecError
from pmlray.memory import read_rows
from tests.unit.cli.test_size import refused, size_json

ROWS = [{"Q": f"key {i}:", "A": f" {7 * i + 10}"} for i in range(6)]
PAIRS = [(row["Q"], row["A"]) for row in ROWS]
NAMED = {"query": "Q", "target": "A"}
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["Q"]},
            {"role": "assistant", "content": row["A"]},
        ]
    }
    for row in ROWS
]


def read(records: Any, columns: dict[str, str] | None = None) -> list[Any]:
    return [(row.query, row.target) for row in read_rows(record_source(records, columns))]


@pytest.mark.parametrize("make", [list, tuple, iter, pd.DataFrame])
def test_rows_of_a_program_are_read_as_those_of_a_file(make: Any) -> None:
    assert read(make(ROWS), NAMED) == PAIRS
    chats = [((("user", query),), target) for query, target in PAIRS]
    assert read(make(CHATS)) == chats


def test_a_data_set_is_read_as_its_rows() -> None:
    datasets = pytest.importorskip("datasets", reason="is in the train extra")
    data = datasets.Dataset.from_list(ROWS)
    assert read(data, NAMED) == PAIRS
    assert read(data.rename_columns({"Q": "query", "A": "target"}).select([3])) == [PAIRS[3]]
    chats = datasets.Dataset.from_list(CHATS)
    assert read(chats) == read(CHATS)
    with pytest.raises(DataError, match="mapping of train; give one split of a DatasetDict"):
        read(datasets.DatasetDict({"train": data}))


def test_a_frame_of_a_parquet_file_has_lists_of_turns(tmp_path: Path) -> None:
    pd.DataFrame(CHATS).to_parquet(tmp_path / "a.parquet")
    assert read(pd.read_parquet(tmp_path / "a.parquet")) == read(CHATS)
    assert read(tmp_path / "a.parquet") == read(str(tmp_path / "a.parquet")) == read(CHATS)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("a", "b")], "row 1: expected a dict such as .* found tuple"),
        ({"train": ROWS}, "mapping of train; give one split"),
        ([{"query": "a", "target": 3}], "records, row 1: target must be text, found int"),
        (pd.DataFrame({"query": ["a", "b"], "target": ["c", None]}), "row 2: target must be text"),
        (pd.DataFrame([["a", "b"]], columns=["query", "query"]), "two columns of the frame"),
        ([], "records: holds no records"),
    ],
)
def test_what_is_wrong_with_rows_is_said(records: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(records)


def test_columns_name_query_and_target() -> None:
    assert parse_columns(None) is None
    assert parse_columns("query=Q,target=the answer=x") == {"query": "Q", "target": "the answer=x"}
    for text in ("Q,A", "query=Q", "query=,target=A", "query=Q,target=A,more=B"):
        with pytest.raises(SpecError, match="expected query=NAME,target=NAME"):
            parse_columns(text)
    for columns in ({"query": "Q"}, {"query": "Q", "answer": "A"}, {}):
        with pytest.raises(SpecError, match="it names the columns of query and target"):
            record_source(ROWS, columns)


def test_a_program_and_a_command_line_plan_the_same(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    dry = ["--records", path, "--dry-run", "--address", "10.0.0.1:6379", "--out", tmp_path / "o"]
    shown = size_json(*dry, "--columns", "query=Q,target=A")
    planned = pmlray.size(
        *(ROWS, TINY),
        columns=NAMED,
        dry_run=True,
        address="10.0.0.1:6379",
        out=tmp_path / "o",
    )
    assert isinstance(planned, SizingPlan)
    assert planned.to_json() == {**shown, "records": "records"}
    size = ["size", "--model", TINY, *dry]
    assert "--columns query=NAME,target=NAME" in refused(DataError, *size)
    saved = Path(__file__).parents[3] / "golden" / "datasets_5_2" / "one_split"
    assert "holds the splits train; give" in refused(
        *(DataError, "size", "--model", TINY, "--records", saved, "--split", "dev")
    )
    assert "names the columns of query and" in refused(SpecError, *size, "--columns", "a=Q,b=A")
