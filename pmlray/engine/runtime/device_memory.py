"""Memory that a pack may use on its device."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def gpu_memory() -> int:
    """Return the bytes of this process's GPU."""
    # Imported here, as a driver asks for main memory alone.
    import torch

    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def main_memory(threads: int) -> int:
    """Return the share of so many threads in the machine's (or container's) main memory, bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        total = min(total, int(limit))
    cores = os.cpu_count() or threads
    return total * min(threads, cores) // cores
