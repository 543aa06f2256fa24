"""How threads wait for each other: bounded, unless somebody has chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pmlray.engine.thread_barriers import BOUNDED_SPIN, CHOICES, bound_waits

# GNU OpenMP prints what it goes by when it is loaded, as it is with torch's library: all of torch
# takes seconds more to import.
LOADED = """
import ctypes, importlib.util, os, sys
from pmlray.engine.thread_barriers import bound_waits
bound_waits(os.environ)
assert "torch" not in sys.modules
(torch,) = importlib.util.find_spec("torch").submodule_search_locations
ctypes.CDLL(os.path.join(torch, "lib", "libtorch_cpu.so"))
"""


def loaded_with(**environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env={**clean, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is GNU's on Linux")
def test_what_is_set_is_what_openmp_goes_by() -> None:
    said = loaded_with()
    for name, value in BOUNDED_SPIN.items():
        assert f"{name} = '{value}'" in said
    assert "GOMP_SPINCOUNT = '77'" in loaded_with(GOMP_SPINCOUNT="77")


@pytest.mark.parametrize("name", CHOICES)
def test_what_somebody_has_set_is_left_alone(name: str) -> None:
    environment = {name: "somebody's", "HOME": "/"}
    bound_waits(environment)
    assert environment == {name: "somebody's", "HOME": "/"}


def test_the_drivers_choice_counts_where_the_node_has_none() -> None:
    bare, chosen = {"HOME": "/"}, {"OMP_WAIT_POLICY": "ACTIVE"}
    bound_waits(bare, chosen)
    assert bare == {"HOME": "/", "OMP_WAIT_POLICY": "ACTIVE"}
    node = {"GOMP_SPINCOUNT": "5"}
    bound_waits(node, chosen)
    assert node == {"GOMP_SPINCOUNT": "5"}
