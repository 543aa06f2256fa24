"""Dataclasses as stored JSON, and rebuilt from it: it is untrusted input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

# Names used for files and folders; the pattern keeps their paths inside the store.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Fields that must be at least 1.
SIZES = ("lora_rank", "seq_len", "supervised_tokens", "rows", "positions")
# Errors of rebuilding an object from a file of another form.
MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
# Fields that are stored only where they have a value, as older files do not have them.
OMITTED = ("placement", "schedule")
T = TypeVar("T")


def taken_apart(stored: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, of nested ones too, as they are stored."""
    return asdict(stored, dict_factory=_fields)


def _fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if value is not None or name not in OMITTED}


def rebuild(kind: type[T], stored: Mapping[str, Any]) -> T:
    """Rebuild a dataclass from its stored fields, nested ones rebuilt already; raises one of
    MALFORMED on a field that is missing, unknown or of another type, or a name unfit for a file."""
    types = {known.name: str(known.type) for known in fields(kind)}  # type: ignore[arg-type]
    words = _words(kind)
    return kind(
        **{name: _checked(name, types.get(name, ""), words, stored[name]) for name in stored}
    )


@cache
def _words(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the allowed values of the fields that are Literals, or one or None, by name."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        for possible in (hint, *get_args(hint)):
            if get_origin(possible) is Literal:
                found[name] = get_args(possible)
    return found


def _checked(name: str, of: str, words: Mapping[str, tuple[Any, ...]], value: Any) -> Any:
    if value is None and of.endswith(" | None"):
        return None
    match of.removesuffix(" | None"):
        case "int" if type(value) is not int or (name in SIZES and value < 1):
            raise ValueError(f"{name} is {value!r}")
        case "float":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} is {value!r}, no number")
            return float(value)
        case "str" if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, no text")
        case "bool" if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}, neither true nor false")
        case _ if name in words and value not in words[name]:
            raise ValueError(f"{name} is {value!r}, none of {', '.join(words[name])}")
        case _:
            pass
    if name in ("run_key", "pack_id") and NAME.fullmatch(str(value)) is None:
        raise ValueError(f"{name} {value!r} is no name of a file")
    return value
