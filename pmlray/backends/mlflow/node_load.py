"""Load of nodes while packs trained there, as files of the store: `load/<round>-<n>.json`.

Files are found by name, since a shared folder's listing may be a minute old on another node.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from pmlray.atomic_files import open_here, write_once
from pmlray.rebuild import MALFORMED, NAME

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Load of a node during the pack of a round. `samples`: time, ms since 1970, and values by name
    (percent, megabytes or watts)."""

    round: int
    node: str
    samples: tuple[tuple[int, Mapping[str, float]], ...]


def put_load(store: Path, load: NodeLoad) -> None:
    """Store a node's load. A failed write is only logged: no pack is measured again for it."""
    content = json.dumps(asdict(load)).encode()
    try:
        (store / "load").mkdir(exist_ok=True)
        # Another attempt, or another node of the pack, may have taken the first names.
        next(path for path in _places(store, load.round) if write_once(path, content))
    except OSError as error:
        log.warning("the load of %s is not kept: %s", load.node, error)


def loads_of(store: Path, rounds: Iterable[int]) -> Iterator[NodeLoad]:
    """Yield the loads of these rounds' packs; unreadable files are left out."""
    for round_ in sorted(set(rounds)):
        for path in takewhile(Path.exists, _places(store, round_)):
            try:
                with open(path, encoding="utf-8", opener=open_here) as file:
                    yield _load_from(json.load(file))
            except (OSError, RecursionError, *MALFORMED) as error:
                log.warning("%s is left out: %r", path, error)


def _places(store: Path, round_: int) -> Iterator[Path]:
    return (store / "load" / f"{round_:03d}-{n}.json" for n in count())


def _load_from(row: Mapping[str, Any]) -> NodeLoad:
    samples = tuple(
        (int(time_ms), {_name(name): _finite(value) for name, value in values.items()})
        for time_ms, values in row["samples"]
    )
    return NodeLoad(int(row["round"]), _name(row["node"]), samples)


def _name(text: str) -> str:
    if NAME.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no name")
    return text


def _finite(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value!r} is no number")
    return number
