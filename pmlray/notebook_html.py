"""HTML of a value for notebooks: a title above a table of names and values, all of it escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape


def facts_html(title: str, facts: Mapping[str, object]) -> str:
    """Return a title and a table of two columns, a row for each fact.

    Example:
        >>> facts_html("smoke", {"runs": 14})
        '<p><b>smoke</b></p><table><tr><th>runs</th><td>14</td></tr></table>'
    """
    rows = "".join(f"<tr><th>{_text(n)}</th><td>{_text(v)}</td></tr>" for n, v in facts.items())
    return f"<p><b>{_text(title)}</b></p><table>{rows}</table>"


def rows_html(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a title and a table with a head of column names.

    Example:
        >>> rows_html("ranks", ["r"], [[8]])
        '<p><b>ranks</b></p><table><tr><th>r</th></tr><tr><td>8</td></tr></table>'
    """
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(v)}</td>' for v in row)}</tr>" for row in rows)
    return f"<p><b>{_text(title)}</b></p><table><tr>{head}</tr>{body}</table>"


def _text(value: object) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
