"""Bounded spinning of a training step's threads at barriers, on a CPU.

torch's threads are GNU OpenMP's. At the end of a parallel loop, thousands of times a step, each
spins until the others arrive, by default for a whole time slice. On idle cores that is fastest.
Where other processes use the cores too, the last thread may not be scheduled while the spinning
ones use up CPU time: a step then cost 2 to 20 times the CPU time
(scripts/bench/results/thread_barriers.md).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# GNU OpenMP's own value where it has more threads than cores; it does not count other processes'
# threads. Without spinning small steps take half as long again on an idle machine; with more of it,
# the CPU time lost on a busy machine grows in proportion.
BOUNDED_SPIN: Mapping[str, str] = {"GOMP_SPINCOUNT": "1000"}
# Variables that choose a wait policy: GNU OpenMP's, the standard's, and Intel's and LLVM's.
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that set a wait policy."""
    return {name: environment[name] for name in CHOICES if name in environment}


def bound_waits(
    environment: MutableMapping[str, str], choice: Mapping[str, str] = BOUNDED_SPIN
) -> None:
    """Add a wait policy to a process's environment, unless it sets one already.

    OpenMP reads it once, when it is loaded: call this before torch is imported.
    """
    if not chosen(environment):
        environment.update(choice)
