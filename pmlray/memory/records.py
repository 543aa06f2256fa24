"""Records to memorise, as token ids: the set, its whole-record prefixes, and the file reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pmlray.errors import DataError
from pmlray.memory.record_tables import RecordRow, csv_rows, dataset_rows, parquet_rows

_FIELD_PAIRS = (("query", "target"), ("question", "matching"))


@dataclass(frozen=True, slots=True)
class PlacedPair:
    """Query and target of a row, with its place in its file for messages, such as `line 3`."""

    place: str
    query: str
    target: str


@dataclass(frozen=True, slots=True)
class Record:
    """Query to recall: the prompt's token ids and the supervised target's token ids.

    `end_id`: token that is to follow the target, at which generation stops; None: none is trained.
    `repeats`: how often an epoch of training shows it. DataError when prompt or target is empty:
    the first target token needs a position that predicts it.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    end_id: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        for name, ids in (("prompt", self.prompt_ids), ("target", self.target_ids)):
            if not ids:
                raise DataError(
                    f"a record has a {name} of 0 tokens; it needs at least 1: check the {name} "
                    "text and the chat template"
                )

    @property
    def supervised_ids(self) -> tuple[int, ...]:
        """Token ids that are trained: the target's, and the end where there is one."""
        return self.target_ids if self.end_id is None else (*self.target_ids, self.end_id)


@dataclass(frozen=True, slots=True)
class MemorySet:
    """Set of records that one adapter memorises.

    `whole_records`: shorter sets drop whole records; if False the set is one record whose target
    may be cut anywhere. `unfilled_tokens`: how far the set falls short of the length that was asked
    for because the next record was too long to fit.
    """

    records: tuple[Record, ...]
    whole_records: bool = True
    unfilled_tokens: int = 0

    @property
    def supervised_tokens(self) -> int:
        """Target tokens over all records, without their ends: the l that is measured."""
        return sum(len(record.target_ids) for record in self.records)

    @property
    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of all prompt and supervised ids, in order."""
        ids = [[record.prompt_ids, record.supervised_ids] for record in self.records]
        return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()[:16]


def check_seq_len(seq_len: int) -> None:
    """Raise DataError unless seq_len (supervised tokens) is at least 1."""
    if seq_len < 1:
        raise DataError(f"seq_len is {seq_len}; it counts supervised tokens and must be at least 1")


def take_tokens(records: Sequence[Record], seq_len: int) -> MemorySet:
    """Take the longest prefix of whole records with at most seq_len target tokens.

    records: in the order in which they are to be taken; seq_len: supervised tokens, at least 1.
    DataError when the records hold fewer than seq_len tokens or the first alone does not fit.
    Source: the PhoneBook lengths of arXiv 2605.30260, which count answer tokens and nest.
    """
    check_seq_len(seq_len)
    available = sum(len(record.target_ids) for record in records)
    if available < seq_len:
        raise DataError(
            f"seq_len {seq_len} is longer than the data: {len(records)} records hold {available} "
            f"target tokens, each fact once; use a seq_len of at most {available} or add records"
        )
    return longest_prefix(records, seq_len)


def longest_prefix(records: Sequence[Record], seq_len: int) -> MemorySet:
    """Take records as take_tokens does, where fewer than seq_len tokens in all are allowed.

    DataError when the first record alone has more than seq_len target tokens.
    """
    used = 0
    n_taken = 0
    for record in records:
        if used + len(record.target_ids) > seq_len:
            break
        used += len(record.target_ids)
        n_taken += 1
    if n_taken == 0:
        raise DataError(
            f"seq_len {seq_len} holds no whole record: the first target has "
            f"{len(records[0].target_ids)} tokens; use a seq_len of at least that"
        )
    return MemorySet(tuple(records[:n_taken]), unfilled_tokens=seq_len - used)


def read_rows(path: Path) -> tuple[PlacedPair, ...]:
    """Read the rows of a file or folder of records, in its order.

    path: JSONL in UTF-8, one object a line; a `.csv` with a header; a `.parquet`; or a folder of
    `datasets`' save_to_disk. Each has the text fields query and target, or question and matching
    (the field names of arXiv 2605.30260's data); other fields and blank lines are ignored.
    DataError, with file and line or row: what cannot be read, a field that is missing, empty or not
    text, no records.
    """
    rows = tuple(PlacedPair(place, *_pair(row, f"{path}, {place}")) for place, row in _rows(path))
    if not rows:
        raise DataError(f"{path}: holds no records; expected one JSON object a line, or a row")
    return rows


def _rows(path: Path) -> Iterator[RecordRow]:
    if path.is_dir():
        return dataset_rows(path)
    if path.suffix.lower() == ".csv":
        return csv_rows(path)
    return parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[RecordRow]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no path ({error})") from error
    # Split as bytes: str.splitlines would also break at separators that JSON allows inside a text.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse_line(line, f"{path}, line {number}")


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a JSON object in UTF-8 ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return cast("dict[str, Any]", row)


def _pair(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    for query_field, target_field in _FIELD_PAIRS:
        if query_field in row and target_field in row:
            return _text(row, query_field, where), _text(row, target_field, where)
    wanted = " or ".join(f"{query} and {target}" for query, target in _FIELD_PAIRS)
    found = ascii(", ".join(row))[1:-1] or "none"
    raise DataError(f"{where}: needs the fields {wanted}; found: {found}")


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} must be text, found {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{where}: {field} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {field} holds half of a surrogate pair ({error})") from error
    return value
