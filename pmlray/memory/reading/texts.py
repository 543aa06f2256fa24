"""Texts of records files, gzip-compressed or not, and the rows of JSON lines and JSON arrays."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pmlray.errors import DataError

# A row's place in its file, for messages, and its cells by the name of their column.
RecordRow = tuple[str, Mapping[str, Any]]

GZIP_MAGIC, UTF8_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SPACE = re.compile(r"[ \t\n\r]*")


def read_utf8(path: Path) -> str:
    """Return the text of a file, unpacked where it is gzip; DataError, with the line, where it is
    not UTF-8 or holds NUL bytes."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is damaged gzip ({error}); pack it anew") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no path ({error})") from error
    if content.startswith(UTF16_MARKS):
        raise DataError(f"{path}, line 1: UTF-16, not UTF-8; save it as UTF-8")
    content = content.removeprefix(UTF8_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error}); save it as UTF-8") from error
    if (nul := text.find("\0")) >= 0:
        raise DataError(
            f"{path}, line {text.count(chr(10), 0, nul) + 1}: holds a NUL byte; save it as UTF-8"
            " text without any"
        )
    return text


def json_rows(path: Path) -> Iterator[RecordRow]:
    """Yield the objects of a JSON array, or of JSON lines; DataError names the line of any other.

    path: a file in UTF-8, which may be gzip. Blank lines are ignored.
    """
    text = read_utf8(path)
    if text.lstrip().startswith("["):
        yield from _array_rows(text, path)
        return
    # Not str.splitlines, which would also break at separators that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where}: not a JSON object ({error}); write one object a line, or all in one"
                    " JSON array"
                ) from error
            yield f"line {number}", _object(row, where)


def _array_rows(text: str, path: Path) -> Iterator[RecordRow]:
    decoder = json.JSONDecoder()
    at = _after_space(text, text.index("[") + 1)
    line = text.count("\n", 0, at) + 1
    more = not text.startswith("]", at)
    while more:
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {line}: the array of records is no JSON here ({error})"
            ) from error
        yield f"line {line}", _object(row, f"{path}, line {line}")
        end = _after_space(text, end)
        line += text.count("\n", at, end)
        if not text.startswith((",", "]"), end):
            raise DataError(f"{path}, line {line}: expected a comma or the end of the array")
        more = text.startswith(",", end)
        at = _after_space(text, end + 1) if more else end
        line += text.count("\n", end, at)
    if text[at + 1 :].strip():
        raise DataError(f"{path}, line {line}: text follows the end of the array; remove it")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return cast("dict[str, Any]", row)
