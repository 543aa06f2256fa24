"""Rules of leases, without files or clocks: the holder of one, and when it may be taken.

A lease is a folder with a file `<generation>`, touched while its holder lives. Generations only
grow: a process takes a lease by making the next one, at which only one of several processes
succeeds. A holder that finds a later generation has lost its lease.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

BEAT_SECONDS = 5.0
# Six beats: a network file system may show a beat some seconds late.
STALE_SECONDS = 30.0
FREE, STOP = "free", "stop"
# As they are written: other forms that `int` accepts would name another file.
GENERATION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Holder:
    """Process that holds a lease. `place`: scope of its pid (a boot and a pid namespace; empty
    where they are unknown). `started`: distinguishes it from a later process of the same pid."""

    host: str
    place: str
    pid: int
    started: str


# Holder of a lease that cannot be read: only its beats show whether it is held.
UNKNOWN = Holder("an unknown host", "", 0, "")


@dataclass(frozen=True, slots=True)
class Seen:
    """Observed state of a lease. `age`: seconds since its last beat, by the file system's own
    clock, so that the clocks of hosts need not agree. `holder` is None once it is given back."""

    generation: int
    holder: Holder | None
    age: float


def may_take(
    seen: Seen | None, here: Holder, start_of: Callable[[int], str | None], stale: float
) -> bool:
    """Return whether a lease is free, stale, or held by a process that is known to be dead.

    start_of: returns the start of a process of this place by its pid, None where there is none.
    stale: age, seconds, beyond which a lease is stale.
    """
    if seen is None or seen.holder is None or seen.age > stale:
        return True
    same_place = bool(here.place) and seen.holder.place == here.place
    return same_place and start_of(seen.holder.pid) != seen.holder.started


def generations(files: Iterable[str]) -> dict[int, frozenset[str]]:
    """Return the generations of a lease, with the suffixes of each one's file names ('' for the
    lease itself, FREE once given back, STOP where its holder asks for an end). Other files are
    ignored."""
    found: dict[int, set[str]] = {}
    for file in files:
        number, dot, kind = file.partition(".")
        if GENERATION.fullmatch(number) and (kind in (FREE, STOP) or not dot):
            found.setdefault(int(number), set()).add(kind)
    return {generation: frozenset(kinds) for generation, kinds in found.items()}


def in_force(generation: int, there: dict[int, frozenset[str]]) -> bool:
    """Return whether work under this generation may go on: it is the last one, held, and its
    holder has not asked for an end."""
    return max(there, default=0) == generation and there[generation] == frozenset({""})
