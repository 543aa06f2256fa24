"""What holds of a whole process alone: what it imports, what its OpenMP goes by, what it pays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ray._private.runtime_env.packaging import unzip_package

from pmlray.backends.ray.job_upload import pack_working_dir
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN, CHOICES

CPU = torch.device("cpu")

LIGHT = """
import sys
import time
import pmlray
loaded = {"torch", "ray", "mlflow", "optuna", "numpy", "typer"} & set(sys.modules)
assert not loaded, loaded
from pmlray import Comparison, Search, check_recall, fit_law, size
loaded = {"typer", "rich", "pmlray.cli", "torch", "ray"} & set(sys.modules)
assert not loaded, loaded
import pmlray.study.search.law_search, pmlray.study.search.plan
import pmlray.design, pmlray.law, pmlray.cli
from typer.testing import CliRunner
for command in ("submit", "list", "status", "logs", "stop", "report"):
    assert CliRunner().invoke(pmlray.cli.app, [command, "--help"]).exit_code == 0, command
loaded = {"torch", "transformers", "mlflow", "deepspeed", "ray", "optuna"} & set(sys.modules)
assert not loaded, loaded
import pmlray.backends.ray.job_upload, pmlray.backends.ray.jobs
loaded = {"torch", "transformers", "deepspeed"} & set(sys.modules)
assert not loaded, loaded
"""


def test_the_laptop_part_loads_no_framework() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_who_waits_for_packs_imports_nothing_that_it_does_not_need() -> None:
    """A driver and its trials, to whom each of these would be a second of start-up or more."""
    unwanted = "{'torch', 'ray.train', 'scipy.stats', 'scipy.optimize'}"
    code = f"import sys, pmlray.backends.ray.train; print({unwanted} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "set()"


def test_a_command_that_ends_does_not_look_through_its_memory_once_more() -> None:
    """After a search it would take seconds."""
    # What is registered first runs last.
    code = """
import atexit, gc, sys
atexit.register(lambda: print("looked at:", len(gc.get_objects())))
import pmlray.cli
sys.argv[1:] = ["schema", "--help"]
pmlray.cli.main()
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(told.stdout.rpartition("looked at: ")[2]) < 1000


def test_ray_train_of_a_worker_alone_loads_no_torch(tmp_path: Path) -> None:
    """Neither here nor in its controller, which is sent what this process makes."""
    code = f"""
import sys
import time
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.ray.worker_pool import WarmWorkers
alone = WarmWorkers(WorkerPlan(None, {str(tmp_path)!r}, 0, 1, 1, 60.0))
alone._trainer(0, None)
print("torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"


def test_it_is_small_and_runs_where_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "part.arrow").write_bytes(b"\0\1")
    files = {"search.yaml": tmp_path / "mine.yaml", "files/records": tmp_path / "facts"}
    archive = tmp_path / "upload.zip"
    assert pack_working_dir(archive, files) == archive.stat().st_size < 1_000_000
    there = tmp_path / "there"
    unzip_package(str(archive), str(there), remove_top_level_directory=False,
                  unlink_zip=False)  # fmt: skip
    assert (there / "search.yaml").read_text() == "name: mine\n"
    assert (there / "files" / "records" / "part.arrow").read_bytes() == b"\0\1"
    assert not list(there.rglob("__pycache__"))
    command = [sys.executable, "-c", "import pmlray.cli; print(pmlray.__file__)"]
    ran = subprocess.run(command, cwd=there, capture_output=True, text=True, timeout=60, check=True)
    assert Path(ran.stdout.strip()) == there / "pmlray" / "__init__.py"


# GNU OpenMP prints what it goes by when it is loaded, as it is with torch's library: all of torch
# takes seconds more to import.
LOADED = """
import ctypes, importlib.util, os, sys
from pmlray.engine.runtime.thread_barriers import bound_waits
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


def test_neighbours_slow_a_run_down_and_do_not_make_it_dearer() -> None:
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        clock = DeviceClock(1, CPU, lambda i: (i,), 0.0)
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        clock.note(0, 1.0)
        clock.lap(training=True)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert clock.gpu_seconds[0] == pytest.approx(0.3, rel=0.2)
