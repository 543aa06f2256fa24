"""Parts of a long benchmark, kept in a file as they are measured: it can be done in sittings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class SittingOver(Exception):
    """As many parts as this sitting was to measure are measured, and there are more."""


class ResumableParts:
    """Measured parts by their key, in a file of one JSON object a line or in memory alone.

    file: kept and continued; None keeps nothing. about: machine, versions and whatever else must be
    the same of all parts; ValueError where the file's are others. most: parts to measure at most
    before `SittingOver`; None measures all.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], most: int | None) -> None:
        self._file, self._about, self._left = file, dict(about), most
        self._parts: dict[str, Any] = {}
        for line in file.read_text().splitlines() if file is not None and file.exists() else ():
            part = json.loads(line)
            if part["about"] != self._about:
                raise ValueError(
                    f"{file} holds parts measured with {part['about']}, not with {self._about};"
                    " name another file"
                )
            self._parts[part["key"]] = part["found"]

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """What is kept of this part, else measured now (JSON types) and kept."""
        if key not in self._parts:
            if self._left == 0:
                raise SittingOver(key)
            self._parts[key] = measure()
            if self._file is not None:
                line = {"key": key, "about": self._about, "found": self._parts[key]}
                with self._file.open("a") as out:
                    out.write(json.dumps(line) + "\n")
            if self._left is not None:
                self._left -= 1
        return self._parts[key]
