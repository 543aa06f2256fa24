"""Read search files and profiles; every complaint names the key, the line and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pmlray.config.search_spec import SearchSpec
from pmlray.errors import SpecError

Spec = TypeVar("Spec", bound=BaseModel)
KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML whose `1e-2` is a number, as in YAML 1.2, and whose keys may not repeat."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)
# PyYAML tries a first character's resolvers in order; its own int rule must win for plain digits.
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first].sort(key=lambda rule: not rule[0].endswith(":int"))


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Validate a search file, with `key.sub=value` overrides; SpecError says what to change."""
    return load_spec(SearchSpec, path, overrides)


def load_spec(kind: type[Spec], path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Validate a YAML file as `kind`; SpecError names file, line, key and what is allowed."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}; give the path of a YAML file")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, _Loader)
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise SpecError(f"{path}: expected keys and values, such as 'name: my_search'")
    lines: dict[KeyPath, str] = {}
    _note_lines(node, (), lines, path)
    for override in overrides:
        _apply(override, data, lines)
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise SpecError("\n".join(_complaints(kind, error, lines, path))) from error
    except TypeError as error:
        raise SpecError(f"{path}: a value is no plain number, text or list: {error}") from error


def _note_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, str], path: Path) -> None:
    lines.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, key.value)
            line = f"{path}:{key.start_mark.line + 1}"
            if where in lines:
                raise SpecError(f"{line}: {_dotted(where)} is given twice; keep one")
            lines[where] = line
            _note_lines(value, where, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*at, index), lines, path)


def _apply(override: str, data: dict[str, Any], lines: dict[KeyPath, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {override}: expected key=value, such as budget.gpu_seconds=600")
    *parents, last = key.split(".")
    level = data
    for parent in parents:
        level = level.setdefault(parent, {})
        if not isinstance(level, dict):
            raise SpecError(f"--set {override}: {parent} holds a value, not keys")
    try:
        level[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: the value is not valid YAML: {error}") from error
    at: KeyPath = ()
    for part in key.split("."):
        at = (*at, part)
        lines.setdefault(at, f"--set {override}")
    lines[at] = f"--set {override}"


def _complaints(
    kind: type[BaseModel], error: ValidationError, lines: dict[KeyPath, str], path: Path
) -> list[str]:
    found = []
    for item in error.errors(include_url=False):
        at = tuple(item["loc"])
        where = next(lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_keys_at(kind, at[:-1])))
            found.append(f"{where}: {_dotted(at)}: unknown key; allowed here: {allowed}")
        elif item["type"] == "missing":
            found.append(f"{where}: {_dotted(at)} is needed")
        elif item["type"] == "value_error":
            found.append(f"{where}: {message}")
        else:
            found.append(f"{where}: {_dotted(at)}: {message} (got {item['input']!r})")
    return found


def _keys_at(kind: type[BaseModel], at: KeyPath) -> list[str]:
    for part in at:
        annotation = kind.model_fields[str(part)].annotation
        options = [annotation, *get_args(annotation)]
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(kind.model_fields)


def _dotted(at: KeyPath) -> str:
    return ".".join(str(part) for part in at)
