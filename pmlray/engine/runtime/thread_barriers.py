"""How the threads of a step wait for each other on a CPU.

torch's threads are GNU OpenMP's. Each waits at the end of a parallel loop, thousands of times a
step, by asking again and again whether the others are there: as long as a time slice, by default.
Alone on its cores that is the fastest way. Where others want the cores too, the thread that is
waited for may not have one, and those that wait use up the time that it needs: a step then cost 2
to 20 times the CPU time (scripts/bench/results/thread_barriers.md).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

# What GNU OpenMP takes by itself where it knows of more threads than cores; it knows nothing of
# other processes. Where threads sleep at once, small steps take half as long again on a quiet
# machine; with more, what waiting uses up on a busy one grows in proportion.
BOUNDED_SPIN: Mapping[str, str] = {"GOMP_SPINCOUNT": "1000"}
# Whoever sets one of them has chosen: of GNU OpenMP, of every OpenMP, of Intel's and LLVM's.
CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """What somebody has set there of how threads wait; empty where nobody has."""
    return {name: environment[name] for name in CHOICES if name in environment}


def bound_waits(
    environment: MutableMapping[str, str], choice: Mapping[str, str] = BOUNDED_SPIN
) -> None:
    """Add a choice to a process's environment in which nobody has made one.

    OpenMP reads it once, when it is loaded: call this before torch is imported.
    """
    if not chosen(environment):
        environment.update(choice)
