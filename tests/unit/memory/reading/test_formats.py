"""Records come as JSON, CSV, TSV, Parquet or a folder of `datasets`, and are the same from each.

`golden/datasets_5_2` was written by `save_to_disk` of the real library, datasets 5.2.0: FACTS as a
Dataset of two shards, and as a DatasetDict of one split.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pmlray.errors import DataError
from pmlray.memory import read_records

GOLDEN = Path(__file__).parents[3] / "golden" / "datasets_5_2"
FACTS = (
    ("Ada Lovelace:", "6000000001"),
    ('Bob, "Junior":', "café\n42"),
    ("都市:", "Tokyo\u2028x"),
    ("Dee:", "d" * 40),
)
Writer = Callable[[Path, list[dict[str, str]]], None]
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_array(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, str]], separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        # QUOTE_ALL: a lone carriage return is not quoted by default, and ends a line when read.
        table = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL, delimiter=separator)
        table.writeheader()
        table.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path)


def packed(write: Writer) -> Writer:
    def write_packed(path: Path, rows: list[dict[str, str]]) -> None:
        plain = path.with_name("plain")
        write(plain, rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))

    return write_packed


WRITERS: dict[str, Writer] = {
    "facts.jsonl": write_jsonl,
    "facts.json": write_array,
    "facts.csv": write_csv,
    "semicolons.csv": partial(write_csv, separator=";"),
    "bars.csv": partial(write_csv, separator="|"),
    "facts.tsv": partial(write_csv, separator="\t"),
    "facts.parquet": write_parquet,
    "facts.jsonl.gz": packed(write_jsonl),
    "facts.json.gz": packed(write_array),
    "facts.tsv.gz": packed(partial(write_csv, separator="\t")),
}


@pytest.mark.parametrize("fields", [("query", "target"), ("question", "matching")])
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_same_records(
    tmp_path: Path, name: str, fields: tuple[str, str]
) -> None:
    rows = [dict(zip((*fields, "note"), (q, t, "n"), strict=True)) for q, t in FACTS]
    WRITERS[name](tmp_path / name, rows)
    assert read_records(tmp_path / name) == FACTS


@pytest.mark.parametrize("name", ["two_shards", "one_split", "one_split/train"])
def test_folders_of_the_real_datasets_library_give_the_same_records(name: str) -> None:
    assert read_records(GOLDEN / name) == FACTS


@settings(deadline=None, max_examples=25)
@given(pairs=st.dictionaries(texts, texts, min_size=1, max_size=4))
def test_any_text_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"query": q, "target": t} for q, t in pairs.items()]
    for name, write in WRITERS.items():
        write(folder / name, rows)
        assert read_records(folder / name) == tuple(pairs.items()), name


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"query,answer\na,b\n", r"line 2: needs the fields .*found: query, answer"),
        ("a.csv", b"query,target\na,b,c\n", r"line 2: 3 cells under 2 columns.* holds commas"),
        ("a.csv", b"query;target\na;b\nc;d;e\n", r"line 3: 3 cells .* holds semicolons"),
        ("a.csv", b"a;b;c\n1;2;3\n", r"line 2: needs the fields .*found: a, b, c; --columns"),
        ("a.csv", b"query,target\na,b\0\n", r"line 2: holds a NUL byte; save it as UTF-8"),
        ("a.csv", "query,target\na,b\n".encode("utf-16"), r"line 1: UTF-16, not UTF-8; save"),
        ("a.csv.gz", gzip.compress(b"query,target\na,b\n", mtime=0)[:-3], r"is damaged gzip"),
        ("a.csv.gz", b"\x1f\x8b\x08nothing", r"is damaged gzip"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), r"cannot be read as Parquet"),
        ("a.csv", b"query,query\na,b\n", r"two columns have one name"),
        ("a.csv", b"query,target\na,\n", r"line 2: target is empty"),
        ("a.csv", b'query,target\na,"b\n', r"not a CSV"),
        ("a.csv", "query,target\na,é\n".encode("latin-1"), r"line 2: not UTF-8"),
        ("a.csv", b"query,target\na,b\na,c\n", r"line 3: the query 'a' already .* on line 2"),
        ("a.csv", b"query,target\n", r"holds no records"),
        ("a.csv", b"", r"holds no records"),
        ("a.parquet", b"PAR1 not really", r"cannot be read as Parquet"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint) as error:
        read_records(tmp_path / name)
    assert name in str(error.value)


def test_what_is_wrong_with_a_parquet_s_columns_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"query": ["a", "b"], "target": ["b", None]}), path)
    with pytest.raises(DataError, match="row 2: target must be text, found NoneType"):
        read_records(path)
    parquet.write_table(pa.table({"query": ["a"], "target": [1]}), path)
    with pytest.raises(DataError, match="row 1: target must be text, found int"):
        read_records(path)
    parquet.write_table(pa.table({"query": ["a"]}), path)
    with pytest.raises(DataError, match="row 1: needs the fields query and target"):
        read_records(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "nowhere.parquet")


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no state\.json"):
        read_records(tmp_path)
    both = tmp_path / "both"
    shutil.copytree(GOLDEN / "one_split", both)
    shutil.copytree(both / "train", both / "test")
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"splits train, test; give the folder of one"):
        read_records(both)
    assert read_records(both / "test") == FACTS
    (both / "test" / "data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as an Arrow stream"):
        read_records(both / "test")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "a/b.arrow"])
def test_a_folder_s_files_cannot_lie_outside_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="which is no file in it"):
        read_records(tmp_path)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(DataError, match="which is no file in it"):
        read_records(tmp_path)
