"""Reader of YAML as plain data: no code, no value within itself, aliases expanded to a limit."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pmlray.errors import SpecError

KeyPath = tuple[str | int, ...]

MOST_CHARACTERS = 2**20
# A search needs six levels; a value that refers to itself has infinitely many.
MOST_LEVELS = 20
# Counted with aliases expanded: a few lines can expand to billions of values.
MOST_VALUES = 10_000
# Errors that PyYAML's constructors raise where a value does not fit its tag.
UNFIT = (ValueError, LookupError, AttributeError, ArithmeticError)


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-2` as a number, as in YAML 1.2; `_note_lines` refuses repeated
    keys."""


# PyYAML has no types of its own.
_Loader.add_implicit_resolver(  # pyrefly: ignore[partially-unknown-type]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)
# PyYAML tries a first character's resolvers in order; its own int rule must win for plain digits.
for _first in "-+0123456789":
    _rules: list[tuple[str, Any]] = _Loader.yaml_implicit_resolvers[_first]
    _rules.sort(key=lambda rule: not rule[0].endswith(":int"))


def parse_yaml(text: str, where: str) -> tuple[Any, dict[KeyPath, str]]:
    """Return the data of a YAML document, and the place of each key and item (`where` and line).

    SpecError, beginning with `where`, for anything that is not plain data of a bounded size.
    """
    if len(text) > MOST_CHARACTERS:
        raise SpecError(f"{where}: longer than {MOST_CHARACTERS} characters")
    lines: dict[KeyPath, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        _note_lines(node, (), lines, where)
        data: Any = loader.construct_document(node)  # pyrefly: ignore[partially-unknown-type]
        return data, lines
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise SpecError(f"{where}: nested too deep") from error
    except UNFIT as error:
        raise SpecError(f"{where}: a value does not fit its type: {error}") from error


def _note_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, str], where: str) -> None:
    line = f"{where}:{node.start_mark.line + 1}"
    lines.setdefault(at, line)
    if len(at) > MOST_LEVELS:
        raise SpecError(f"{line}: more than {MOST_LEVELS} levels deep, or a value within itself")
    if len(lines) > MOST_VALUES:
        raise SpecError(f"{line}: more than {MOST_VALUES} values, with aliases written out")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = f"{where}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(f"{line}: a key must be a word or a number")
            _check_text(key.value, line)
            below = (*at, key.value)
            if below in lines:
                raise SpecError(f"{line}: {dotted(below)} is given twice; keep one")
            lines[below] = line
            _note_lines(value, below, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*at, index), lines, where)
    else:
        _check_text(node.value, line)


def _check_text(text: str, line: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpecError(f"{line}: holds half of a surrogate pair ({error})") from error


def dotted(at: KeyPath) -> str:
    """Return a key path as it is written in an override: `space.seq_len`."""
    return ".".join(str(part) for part in at)
