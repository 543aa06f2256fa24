"""Records as a program or a command line gives them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from pmlray.errors import DataError, SpecError
from pmlray.memory import Columns, RecordSource
from pmlray.memory.reading.splits import split_rows

# A file or folder, or rows: dicts, a `datasets.Dataset` or a pandas frame.
Records = str | Path | Iterable[Mapping[str, Any]]


def record_source(
    records: Records, columns: Mapping[str, str] | None = None, split: str | None = None
) -> RecordSource:
    """Return records to read; of a file nothing is read yet.

    Args:
        records: a file or folder, or rows: dicts, a `datasets.Dataset` or a pandas frame.
        columns: names of the columns of `query` and of `target`; None: the rows have a known
            layout.
        split: of a data set, of which `records` is the id on the Hugging Face hub or the folder;
            None: it is none.

    Raises:
        DataError: rows are no dicts, or a data set cannot be loaded.
        SpecError: columns names something else, or a split is asked of rows.

    Example:
        >>> record_source([{"Q": "Alice:", "A": "555-0101"}], {"query": "Q", "target": "A"})
    """
    chosen = named_columns(columns)
    if isinstance(records, str | Path):
        if split is None:
            return RecordSource(Path(records), chosen)
        return RecordSource(split_rows(str(records), split), chosen, f"{records}, split {split}")
    if split is not None:
        raise SpecError(f"split is {split}, but records are rows; give those of the split")
    return RecordSource(_rows(records), chosen)


def parse_columns(text: str | None) -> dict[str, str] | None:
    """Return the columns named by `query=NAME,target=NAME`; SpecError where a part names none."""
    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",")]
    if any(not (equals and name) for _, equals, name in parts) or len(parts) != 2:
        raise SpecError(f"--columns {text}: expected query=NAME,target=NAME")
    return {key.strip(): name for key, _, name in parts}


def named_columns(columns: Mapping[str, str] | None) -> Columns | None:
    """Return the columns named for `query` and `target`; SpecError where others are named."""
    if columns is None:
        return None
    if set(columns) != {"query", "target"}:
        raise SpecError(
            f"columns names {', '.join(map(str, columns)) or 'nothing'}; it names the columns of"
            " query and target"
        )
    return Columns(columns["query"], columns["target"])


def _rows(records: Any) -> tuple[Mapping[str, Any], ...]:
    # Whoever has a frame has imported pandas, which is no dependency of the light install.
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None and isinstance(records, pandas.DataFrame):
        frame: Any = records
        if not frame.columns.is_unique:
            raise DataError("records: two columns of the frame have one name; rename one")
        return tuple(_with_lists(row) for row in frame.to_dict("records"))
    if isinstance(records, Mapping):
        names = ascii(", ".join(map(str, cast("Mapping[Any, Any]", records))))[1:-1]
        raise DataError(
            f"records: is a mapping of {names}; give one split of a DatasetDict, or a list of dicts"
        )
    rows = tuple(cast("Iterable[Any]", records))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"records, row {number}: expected a dict such as"
                f' {{"query": ..., "target": ...}}, found {type(row).__name__}'
            )
    return rows


def _with_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a frame's row with lists in place of the arrays that pandas reads from Parquet."""
    return {
        column: cast("np.ndarray[Any, Any]", cell).tolist()
        if isinstance(cell, np.ndarray)
        else cell
        for column, cell in row.items()
    }
