"""Texts in the cells of a record's row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmlray.errors import DataError


def cell_text(row: Mapping[str, Any], field: str, where: str) -> str:
    """Return the text of a row's field; DataError where it is none, empty, or cannot be encoded.

    where: the row's place, for messages.
    """
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} must be text, found {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{where}: {field} is empty")
    if "\0" in value:
        raise DataError(f"{where}: {field} holds a NUL character; remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {field} holds half of a surrogate pair ({error})") from error
    return value
