"""Niceness of a cluster's processes.

Ray starts its workers at niceness 15, unless RAY_worker_niceness is set where a node starts, or in
the environment with which a worker is requested.
"""

from __future__ import annotations

import re

from pmlray.version import shipped

NICENESS = "RAY_worker_niceness"
# Ray job that prints a worker's niceness. The job itself runs at 0, whatever that of the workers.
PROBE = (
    "import os, ray; ray.init(log_to_driver=False);"
    " print('niceness', ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote()))"
)
REMEDY = (
    "set RAY_worker_niceness=0 where `ray start` runs, on every node"
    f" ({shipped('cluster/README.md')}), and start the cluster again"
)


def told_niceness(text: str) -> int | None:
    """Read the niceness that PROBE has printed from the log of its job."""
    found = re.search(r"^niceness (-?\d+)$", text, re.MULTILINE)
    return None if found is None else int(found[1])


def describe_niceness(niceness: int) -> str:
    """Describe the effect of a niceness on a cluster's workers."""
    return (
        f"this cluster's workers run at niceness {niceness}: beside other work on their nodes they"
        " get little of a core (pmlray starts those that train at 0, and no others)"
    )
