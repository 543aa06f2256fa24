"""Layouts of records: which columns of a row hold the query and the target."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pmlray.errors import DataError
from pmlray.memory.reading.cells import cell_text
from pmlray.memory.reading.dialogue import Query, conversation_pair

CURE = "--columns query=NAME,target=NAME, in a search task.columns, names those to take"
# Columns of other tools that add to a prompt, and are read by no layout here.
UNREAD = ("system", "history", "tools")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold the query and the target, where no known layout does."""

    query: str
    target: str


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns that a row must have, and how its query and target are read from it."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], tuple[Query, str]]

    def fits(self, names: Collection[str]) -> bool:
        return all(column in names for column in self.columns)


def fits_a_layout(names: Collection[str], columns: Columns | None) -> bool:
    """Return whether a header has the named columns, or those of a known layout."""
    if columns is not None:
        return columns.query in names and columns.target in names
    return any(layout.fits(names) for layout in LAYOUTS)


def read_pair(
    row: Mapping[str, Any], where: str, columns: Columns | None = None
) -> tuple[Query, str]:
    """Return the query and the target of a row.

    Args:
        row: cells by the name of their column; others than the layout's are ignored.
        where: the row's place, for messages.
        columns: those to take; None: of the one known layout that fits.

    Raises:
        DataError: no layout fits, or several do, or a text is missing, empty or none.

    Example:
        >>> read_pair({"instruction": "Add.", "input": "1 + 2", "output": "3"}, "a.jsonl, line 1")
        ('Add.\\n1 + 2', '3')
    """
    found = ascii(", ".join(map(str, row)))[1:-1] or "none"
    if columns is not None:
        if not fits_a_layout(row, columns):
            raise DataError(
                f"{where}: needs the fields {columns.query} and {columns.target}; found: {found}"
            )
        return cell_text(row, columns.query, where), cell_text(row, columns.target, where)
    fitting = [layout for layout in LAYOUTS if layout.fits(row)]
    if not fitting:
        raise DataError(
            f"{where}: needs the fields {_named(LAYOUTS, ' or ')}; found: {found}; {CURE}"
        )
    if len(fitting) > 1:
        raise DataError(
            f"{where}: has the fields of {len(fitting)} layouts, {_named(fitting, '; ')}: {CURE}"
        )
    return fitting[0].read(row, where)


def _named(layouts: Collection[_Layout], between: str) -> str:
    return between.join(" and ".join(layout.columns) for layout in layouts)


def _texts(query: str, target: str) -> _Layout:
    def read(row: Mapping[str, Any], where: str) -> tuple[Query, str]:
        return cell_text(row, query, where), cell_text(row, target, where)

    return _Layout((query, target), read)


def _prompt_completion(row: Mapping[str, Any], where: str) -> tuple[Query, str]:
    """Read TRL's layout, whose prompt and completion are texts, or lists of messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = cast("list[Any]", prompt) + cast("list[Any]", completion)
        return conversation_pair(turns, "prompt and completion", "role", "content", where)
    return cell_text(row, "prompt", where), cell_text(row, "completion", where)


def _alpaca(row: Mapping[str, Any], where: str) -> tuple[Query, str]:
    """Read an instruction, with its input on a line of its own where there is one."""
    _check_unread(row, where)
    query = cell_text(row, "instruction", where)
    if row.get("input") not in (None, ""):
        query += "\n" + cell_text(row, "input", where)
    return query, cell_text(row, "output", where)


def _messages(row: Mapping[str, Any], where: str) -> tuple[Query, str]:
    _check_unread(row, where)
    return conversation_pair(row["messages"], "messages", "role", "content", where)


def _sharegpt(row: Mapping[str, Any], where: str) -> tuple[Query, str]:
    _check_unread(row, where)
    return conversation_pair(row["conversations"], "conversations", "from", "value", where)


def _check_unread(row: Mapping[str, Any], where: str) -> None:
    for column in UNREAD:
        if row.get(column):
            raise DataError(
                f"{where}: {column} is not read and would be missing in the prompt; write it as a"
                " turn of messages, or leave it out"
            )


LAYOUTS = (
    _texts("query", "target"),
    _texts("question", "matching"),
    _texts("question", "answer"),
    _Layout(("prompt", "completion"), _prompt_completion),
    _Layout(("instruction", "output"), _alpaca),
    _Layout(("messages",), _messages),
    _Layout(("conversations",), _sharegpt),
)
