"""Rows of CSV and TSV: with a header, and commas, semicolons, tabs or vertical bars between."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pmlray.errors import DataError
from pmlray.memory.reading.layouts import Columns, fits_a_layout
from pmlray.memory.reading.texts import RecordRow, read_utf8

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def csv_rows(path: Path, columns: Columns | None = None) -> Iterator[RecordRow]:
    """Yield the rows of a CSV in UTF-8 with a header; DataError where a row has other columns.

    The separator is the one by which the header has the wanted columns (those of a known layout
    where None are named), else the one by which it has most.
    """
    text = read_utf8(path)
    separator = _separator(text, columns)
    try:
        lines = _cells(text, separator)
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV ({error})") from error
    _, header = lines[0] if lines else (1, list[str]())
    if len(set(header)) < len(header):
        raise DataError(f"{path}, line 1: two columns have one name; rename one")
    for number, cells in lines[1:]:
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(cells)} cells under {len(header)} columns; put text"
                f" that holds {SEPARATORS[separator]} or line breaks in double quotes"
            )
        yield f"line {number}", dict(zip(header, cells, strict=True))


def _separator(text: str, columns: Columns | None) -> str:
    widths: dict[str, int] = {}
    for separator in SEPARATORS:
        try:
            header = next(_reader(text, separator), list[str]())
        except csv.Error:
            # Quotes that are closed by another separator.
            continue
        if fits_a_layout(header, columns):
            return separator
        widths[separator] = len(header)
    return max(widths, key=lambda separator: widths[separator], default=",")


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Return the cells of every row with the number of its last line."""
    # The module's own limit of a cell, 128 KiB, is less than a long text to memorise.
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        reader = _reader(text, separator)
        return [(reader.line_num, cells) for cells in reader]
    finally:
        csv.field_size_limit(limit)


def _reader(text: str, separator: str) -> csv.Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
