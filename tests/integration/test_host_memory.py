"""glibc's allocator as workers on a CPU have it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR

# In a thread, as Ray Train runs its function: page faults of steps that take and free 100 MB, and
# the resident memory that goes away with `give_back_freed`.
STEPS = """
import ctypes, resource, threading
from pathlib import Path
from pmlray.engine.runtime.malloc_settings import give_back_freed
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def step():
    taken = [libc.malloc(10_000_000) for _ in range(10)]
    for address in taken:
        ctypes.memset(address, 1, 10_000_000)
    for address in taken:
        libc.free(address)
def steps():
    step()
    before = faults()
    for _ in range(10):
        step()
    after, held = faults(), resident()
    give_back_freed()
    print((after - before) / 10, held - resident())
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def faults_and_given_back(environment: dict[str, str]) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        env={k: v for k, v in os.environ.items() if k not in CPU_ALLOCATOR} | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    faults, given_back = (float(number) for number in done.stdout.split())
    return faults, given_back


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's, the figures Linux's")
def test_a_step_takes_the_memory_that_the_last_one_freed() -> None:
    plain, _ = faults_and_given_back({})
    faults, given_back = faults_and_given_back(CPU_ALLOCATOR)
    assert faults < plain / 20
    assert given_back > 90_000_000
