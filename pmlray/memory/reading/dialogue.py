"""Queries: a text, or the turns of a conversation that the answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pmlray.errors import DataError
from pmlray.memory.reading.cells import cell_text

# Role (system, user or assistant) and content of a turn.
Turn = tuple[str, str]
Query = str | tuple[Turn, ...]

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    # As ShareGPT's files name them.
    "human": "user",
    "gpt": "assistant",
}


def query_text(query: Query) -> str:
    """Return a query as one text, a turn a line: to show it, and where no template renders it."""
    if isinstance(query, str):
        return query
    return "\n".join(f"{role}: {content}" for role, content in query)


def plain_query(query: Query, where: str) -> str:
    """Return a query as a plain prompt: a text, or the content of a conversation's one user turn.

    where: the record's place, for messages. DataError where a conversation has other turns.
    """
    if isinstance(query, str):
        return query
    roles = [role for role, _ in query]
    if roles != ["user"]:
        raise DataError(
            f"{where}: a conversation that begins with the turns {', '.join(roles)} is no plain"
            " prompt; have the base's chat template render it by --prompt-format chat (in a search"
            " task.prompt_format: chat), take a base that has one, or leave one user turn"
        )
    return query[0][1]


def conversation_pair(
    turns: Any, field: str, role_key: str, content_key: str, where: str
) -> tuple[Query, str]:
    """Return the turns before a conversation's last, which is the assistant's, and its content.

    Args:
        turns: list of objects, each with a role and a content.
        field: name of the column that holds it, for messages.
        role_key, content_key: names of the role and the content in a turn.
        where: the record's place, for messages.

    Raises:
        DataError: the conversation has no such turns.

    Example:
        >>> turns = [{"from": "human", "value": "Alice:"}, {"from": "gpt", "value": "555-0101"}]
        >>> conversation_pair(turns, "conversations", "from", "value", "a.json, line 1")
        ((('user', 'Alice:'),), '555-0101')
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise DataError(
            f"{where}: {field} must be a list of turns, each with {role_key} and {content_key};"
            f" found {type(turns).__name__}"
        )
    read = [
        _turn(turn, role_key, content_key, f"{where}: {field}, turn {number}")
        for number, turn in enumerate(cast("Sequence[Any]", turns), start=1)
    ]
    if len(read) < 2 or read[-1][0] != "assistant":
        found = ", ".join(role for role, _ in read) or "none"
        raise DataError(
            f"{where}: {field} must end with the assistant's turn, the target, and have one before"
            f" it; its turns: {found}"
        )
    return tuple(read[:-1]), read[-1][1]


def _turn(turn: Any, role_key: str, content_key: str, where: str) -> Turn:
    cells = cast("Mapping[str, Any]", turn if isinstance(turn, Mapping) else {})
    if role_key not in cells or content_key not in cells:
        raise DataError(f"{where} must be an object with {role_key} and {content_key}")
    named = cell_text(cells, role_key, where)
    if named not in ROLES:
        raise DataError(f"{where}: {role_key} is {named!r}; known are {', '.join(ROLES)}")
    return ROLES[named], cell_text(cells, content_key, where)
