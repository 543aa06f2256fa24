"""Bounded waiting of a training step's threads at barriers, on a CPU.

torch's threads are GNU OpenMP's. At the end of a parallel loop, thousands of times a step, each
spins until the others arrive, by default for a whole time slice. On idle cores that is fastest.
Where other processes want the cores, the last thread may have none while the waiting ones use up
its time: a step then cost 2 to 20 times the CPU time
(scripts/bench/results/thread_barriers.md).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# What GNU OpenMP takes by itself where it knows of more threads than cores; it knows nothing of
# other processes. Where threads sleep at once, small steps take half as long again on a quiet
# machine; with more, what waiting uses up on a busy one grows in proportion.
BOUNDED_SPIN: Mapping[str, str] = {"GOMP_SPINCOUNT": "1000"}
# Variables that choose a wait policy: of GNU OpenMP, of every OpenMP, of Intel's and LLVM's.
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set how threads wait and are in an environment."""
    return {name: environment[name] for name in CHOICES if name in environment}


def bound_waits(
    environment: MutableMapping[str, str], choice: Mapping[str, str] = BOUNDED_SPIN
) -> None:
    """Add a choice to a process's environment in which nobody has made one.

    OpenMP reads it once, when it is loaded: call this before torch is imported.
    """
    if not chosen(environment):
        environment.update(choice)
