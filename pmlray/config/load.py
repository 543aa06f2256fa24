"""Readers of search files and profiles; errors name the key, the line and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.search_spec import SearchSpec
from pmlray.config.yaml_reader import KeyPath, dotted, parse_yaml
from pmlray.errors import SpecError
from pmlray.version import here_or_shipped

if TYPE_CHECKING:
    pass

Spec = TypeVar("Spec", bound=BaseModel)
# Returns where the value of a key, such as `space.lora_rank`, was given.
Where = Callable[[str], str]
# Characters of a refused value that are shown.
MOST_SHOWN = 80


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchSpec:
    """Validate a search file, with `key.sub=value` overrides; SpecError says what to change."""
    return load_spec(SearchSpec, here_or_shipped(path), overrides)


def load_spec(kind: type[Spec], path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Validate a YAML file as `kind`; SpecError names file, line, key and what is allowed."""
    data, lines = _parse(path, overrides)
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise SpecError("\n".join(_complaints(kind, error, data, lines))) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: a value is no plain number, text or list: {error}") from error


def places(path: Path, overrides: Sequence[str] = ()) -> Where:
    """Return where each key of a YAML file, with its overrides, was given: file and line, or the
    override."""
    lines = _parse(path, overrides)[1]

    def where(key: str) -> str:
        at = tuple(key.split("."))
        return _nearest(at, lines)

    return where


def _parse(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the data of a YAML file with its overrides, and the place of each key."""
    found, lines = parse_yaml(read_text(path), str(path))
    if not isinstance(found, dict):
        raise SpecError(f"{path}: expected keys and values, such as 'name: my_search'")
    data: dict[str, Any] = found
    for override in overrides:
        _apply(override, data, lines)
    return data, lines


def _nearest(at: KeyPath, lines: dict[KeyPath, str]) -> str:
    """Return the place of a key, or of the nearest one above it that was given."""
    return next(lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines)


def read_text(path: Path) -> str:
    """Return the text of a user's file; SpecError when it is missing or cannot be read."""
    try:
        if not path.is_file():
            raise SpecError(f"there is no file {path}; give the path of a YAML file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _apply(override: str, data: dict[str, Any], lines: dict[KeyPath, str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {override}: expected key=value, such as budget.gpu_seconds=600")
    *parents, last = key.split(".")
    level = data
    for parent in parents:
        found = level.setdefault(parent, {})
        if not isinstance(found, dict):
            raise SpecError(f"--set {override}: {parent} holds a value, not keys")
        below: dict[str, Any] = found
        level = below
    level[last], _ = parse_yaml(text, f"--set {override}")
    at: KeyPath = ()
    for part in key.split("."):
        at = (*at, part)
        lines.setdefault(at, f"--set {override}")
    lines[at] = f"--set {override}"


def _complaints(
    kind: type[BaseModel], error: ValidationError, data: dict[str, Any], lines: dict[KeyPath, str]
) -> list[str]:
    found: list[str] = []
    items = error.errors(include_url=False)
    explained = [tuple(item["loc"]) for item in items if item["type"] == "value_error"]
    for item in items:
        # A refused name of a mapping is told by its own key.
        at = tuple(part for part in item["loc"] if part != "[key]")
        where = _nearest(at, lines)
        message = item["msg"].removeprefix("Value error, ")
        several = _of_several_types(kind, at)
        if item["type"] == "missing" and (several is None or several[0] == at):
            found.append(f"{where}: {dotted(at)} is needed")
        elif item["type"] != "value_error" and several is not None:
            # Each of its types has complained, by its own name.
            key, takes = several
            if not any(one[: len(key)] == key for one in explained):
                found.append(f"{where}: {dotted(key)} is {takes} (got {_shown(_value(data, key))})")
        elif item["type"] == "extra_forbidden":
            part = _part_at(kind, at[:-1])
            allowed = ", ".join(sorted(part.model_fields))
            instead = getattr(part, "INSTEAD", {}).get(at[-1])
            why = instead or f"unknown key; allowed here: {allowed}"
            found.append(f"{where}: {dotted(at)}: {why}")
        elif item["type"] == "value_error":
            found.append(f"{where}: {message}")
        else:
            found.append(f"{where}: {dotted(at)}: {message} (got {_shown(item['input'])})")
    return list(dict.fromkeys(found))


def _of_several_types(kind: type[BaseModel], at: KeyPath) -> tuple[KeyPath, str] | None:
    """Return the key within `at` that takes values of several types, and which those are in words;
    None where there is none."""
    for at_field, field in _fields_along(kind, at):
        if field.description is not None and len(get_args(field.annotation)) > 1:
            return at_field, field.description
    return None


def _value(data: Any, at: KeyPath) -> Any:
    for part in at:
        data = data[part]
    return data


def _fields_along(kind: type[BaseModel], at: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo]]:
    """Yield the fields of nested parts of a spec that a key leads through, each with its key."""
    named = False
    for n, part in enumerate(at, 1):
        # The items of a list, and the names of placements, have their list's or mapping's field.
        if isinstance(part, int) or named:
            named = False
            continue
        if (field := kind.model_fields.get(part)) is None:
            return
        yield at[:n], field
        below, named = _model_of(field.annotation)
        if below is None:
            return
        kind = below


def _part_at(kind: type[BaseModel], at: KeyPath) -> type[BaseModel]:
    for _, field in _fields_along(kind, at):
        below, _ = _model_of(field.annotation)
        assert below is not None  # Unknown keys are those of a part.
        kind = below
    return kind


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the part of a spec that a field holds, None of a plain value; and whether it holds
    several by name."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option, False
        if get_origin(option) is dict:
            return get_args(option)[1], True
    return None, False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def read_profile(path: str | Path | None) -> ClusterProfile:
    """Return the profile in a file, or by default that of one machine without a GPU."""
    if path is None:
        return ClusterProfile()
    return load_spec(ClusterProfile, here_or_shipped(Path(path)))
