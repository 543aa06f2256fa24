"""Rows of records that are tables: Parquet, and a folder of Hugging Face `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, cast

from pmlray.errors import DataError
from pmlray.memory.reading.texts import RecordRow

STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"


def parquet_rows(path: Path) -> Iterator[RecordRow]:
    """Yield the rows of a Parquet file; DataError where it is none, or pyarrow is missing."""
    arrow, parquet = _arrow("pyarrow", path), _arrow("pyarrow.parquet", path)
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    yield from _table_rows(table, path, 0)


def dataset_rows(folder: Path, split: str | None = None) -> Iterator[RecordRow]:
    """Yield the rows of a folder that `datasets.Dataset.save_to_disk` wrote.

    The folder of a DatasetDict gives the rows of the split asked for, or of its only one; of
    several, DataError asks for one.
    """
    splits = _listed(folder / SPLITS_FILE, "splits") if (folder / SPLITS_FILE).is_file() else None
    if splits is not None:
        chosen = [one for one in splits if split in (None, one)]
        if len(chosen) != 1:
            raise DataError(
                f"{folder}: holds the splits {', '.join(splits)}; give the folder of one, such as"
                f" {folder / (splits or ['train'])[0]}"
            )
        folder = folder / _inside(chosen[0], folder)
    if not (folder / STATE_FILE).is_file():
        raise DataError(
            f"{folder}: is no folder of datasets' save_to_disk (it has no {STATE_FILE}); give that,"
            " or a .jsonl, .csv or .parquet file"
        )
    arrow, n = _arrow("pyarrow", folder), 0
    for name in _listed(folder / STATE_FILE, "_data_files"):
        path = folder / _inside(name, folder)
        try:
            with arrow.memory_map(str(path)) as source:
                table = arrow.ipc.open_stream(source).read_all()
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as an Arrow stream ({error})") from error
        yield from _table_rows(table, path, n)
        n += table.num_rows


def _arrow(module: str, path: Path) -> Any:
    """Import a module of pyarrow, an optional dependency without types; DataError where it is
    missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"{path}: reading it needs pyarrow; run: pip install pyarrow") from error


def _table_rows(table: Any, path: Path, n_before: int) -> Iterator[RecordRow]:
    try:
        rows = cast("list[dict[str, Any]]", table.to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text is not UTF-8 ({error})") from error
    for number, row in enumerate(rows, start=n_before + 1):
        yield f"row {number}", row


def _listed(path: Path, key: str) -> list[str]:
    """Return the names listed in a JSON file of `datasets`: texts, or objects with a filename."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))[key]
        return [str(_filename(item)) for item in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not as datasets' save_to_disk writes it ({error!r})") from error


def _filename(item: Any) -> Any:
    return item if isinstance(item, str) else item["filename"]


def _inside(name: str, folder: Path) -> str:
    """Return a file name of a folder; DataError where it would lead out of the folder."""
    if not name or name in (".", "..") or PurePath(name).name != name:
        raise DataError(f"{folder}: names {name!r}, which is no file in it")
    return name
