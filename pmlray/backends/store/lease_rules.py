"""Rules of leases, without files or clocks: who holds one, and when it may be taken.

A lease is a folder with a file `<generation>`, touched while its holder lives. Generations only
grow: a taker makes the next one, which one of several takers alone can do, and a holder that finds
a later one has lost its lease, whatever kept it from noticing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

BEAT_SECONDS = 5.0
# Six beats: a network file system may show a beat some seconds late.
STALE_SECONDS = 30.0
FREE, STOP = "free", "stop"
# As they are written; what else `int` reads would be looked for under another name.
GENERATION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process. `place`: where its pid means something (a boot and a pid namespace; empty where
    that cannot be told). `started`: tells it from a later process of the same pid."""

    host: str
    place: str
    pid: int
    started: str


# Of a lease that cannot be read: only its beats tell whether it is held.
UNKNOWN = Holder("an unknown host", "", 0, "")


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease as someone finds it. `age`: seconds since its last beat, by the file system's own
    clock, so that the clocks of hosts need not agree. `holder` is None once it is given back."""

    generation: int
    holder: Holder | None
    age: float


def may_take(
    seen: Seen | None, here: Holder, start_of: Callable[[int], str | None], stale: float
) -> bool:
    """Return whether a lease is free, stale, or held by a process that is known to be dead.

    start_of: start of a process of this place, None where there is none. stale: seconds.
    """
    if seen is None or seen.holder is None or seen.age > stale:
        return True
    same_place = bool(here.place) and seen.holder.place == here.place
    return same_place and start_of(seen.holder.pid) != seen.holder.started


def generations(files: Iterable[str]) -> dict[int, frozenset[str]]:
    """Return the generations of a lease, with the endings of each one's file names ('' for the
    lease itself, FREE once given back, STOP where its holder wants to leave). Other files are
    ignored."""
    found: dict[int, set[str]] = {}
    for file in files:
        number, dot, kind = file.partition(".")
        if GENERATION.fullmatch(number) and (kind in (FREE, STOP) or not dot):
            found.setdefault(int(number), set()).add(kind)
    return {generation: frozenset(kinds) for generation, kinds in found.items()}


def in_force(generation: int, there: dict[int, frozenset[str]]) -> bool:
    """Return whether work under this generation may go on: it is the last one, held, and its
    holder does not want to leave."""
    return max(there, default=0) == generation and there[generation] == frozenset({""})
