"""Records read from a file, a folder or a program's rows, as queries and targets in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pmlray.errors import DataError
from pmlray.memory.reading.delimited import csv_rows
from pmlray.memory.reading.dialogue import Query
from pmlray.memory.reading.layouts import Columns, read_pair
from pmlray.memory.reading.tables import dataset_rows, parquet_rows
from pmlray.memory.reading.texts import RecordRow, json_rows

# What tells how a file is read; all others are JSON.
CSV_SUFFIXES, PARQUET_SUFFIX = (".csv", ".tsv"), ".parquet"


@dataclass(frozen=True, slots=True)
class PlacedPair:
    """Query and target of a row, with its place in its file for messages, such as `line 3`."""

    place: str
    query: Query
    target: str


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Records to read: a file or folder, or rows by column, with a name for messages; `columns`:
    those to take, None where the rows have a known layout."""

    content: Path | tuple[Mapping[str, Any], ...]
    columns: Columns | None = None
    name: str = "records"

    def __str__(self) -> str:
        return str(self.content) if isinstance(self.content, Path) else self.name


def read_rows(source: RecordSource) -> tuple[PlacedPair, ...]:
    """Read the rows of records, in their order.

    source: a file of JSON lines or of one JSON array; a `.csv` or `.tsv` with a header; either
    in UTF-8, also as gzip; a `.parquet`; a folder of `datasets`' save_to_disk; or rows of a
    program. Each row has the columns named, or those of one of `layouts.LAYOUTS`; others are
    ignored. DataError, with file and line or row: what cannot be read, a field that is missing,
    empty or not text, no records.
    """
    rows = tuple(
        PlacedPair(place, *read_pair(row, f"{source}, {place}", source.columns))
        for place, row in _rows(source)
    )
    if not rows:
        raise DataError(f"{source}: holds no records; expected one JSON object a line, or a row")
    return rows


def format_suffix(name: str) -> str:
    """Return the suffix that tells how a file is read, packed or not; empty where it is JSON."""
    suffix = PurePath(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in (*CSV_SUFFIXES, PARQUET_SUFFIX) else ""


def _rows(source: RecordSource) -> Iterator[RecordRow]:
    path = source.content
    if not isinstance(path, Path):
        return ((f"row {number}", row) for number, row in enumerate(path, start=1))
    if path.is_dir():
        return dataset_rows(path)
    suffix = format_suffix(path.name)
    if suffix in CSV_SUFFIXES:
        return csv_rows(path, source.columns)
    return parquet_rows(path) if suffix == PARQUET_SUFFIX else json_rows(path)
