"""A Ray of one command beside others, living and dead; one study after another on it; and a cluster
on which no worker can start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, SMALL, SMOKE, end_group, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Fifty take 15 to 25 minutes on two cores: `PMLRAY_ROUNDS=50 pytest -k fifty --timeout 3600`.
ROUNDS = int(os.environ.get("PMLRAY_ROUNDS", "3"))
HOLD = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
@ray.remote(num_cpus=2)
class Holder:
    def ready(self): pass
holder = Holder.remote()
ray.get(holder.ready.remote())
print("held", flush=True)
sys.stdin.read()
"""
IMPATIENT = """
import sys
from pmlray.backends.ray import waits as ray_waits
ray_waits.START_SECONDS = 6.0
from pmlray.cli import main
main()
"""


# Of a worker as the cluster starts them, and of one that trains, as jobs of Ray Train start it.
NICENESS = """
import os, sys, ray
from pathlib import Path
from pmlray.backends.ray.controllers import trainer_of
from pmlray.backends.ray.session import ray_session
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.ray.worker_pool import WarmWorkers
plan = WorkerPlan(None, sys.argv[2], 0, 1, 1, 60.0)
def train(config):
    Path(config["plan"].store, "niceness").write_text(str(os.nice(0)))
class Workers(WarmWorkers):
    def fit(self):
        me = ray.get_runtime_context().current_actor
        trainer_of(plan, train, "told", 0, me).fit()
with ray_session(sys.argv[1]):
    workers = ray.remote(Workers).options(num_cpus=0).remote(plan)
    others = ray.get(workers.niceness.remote())
    ray.get(workers.fit.remote())
    sys.stdout.write(f"niceness {others} {Path(plan.store, 'niceness').read_text()}")
"""


KILL = """
import os, signal, sys, time
from pathlib import Path
import ray
from pmlray.backends.ray import held_resources
from pmlray.backends.ray.session import ray_session
from pmlray.backends.ray.train import RayTrainRunner
from pmlray.config import ClusterProfile
from pmlray.config.prepared_search import prepare_search
search = prepare_search(Path("searches/smoke.yaml"), ())
with ray_session("local"):
    runner = RayTrainRunner(search, Path(sys.argv[1]), ClusterProfile(cpus_per_pack=2), 1)
    runner.prepare(1)
    # Its group, and the actor's process; a worker's starts later than its group is there.
    pids = []
    while not pids or all(group.waits for group in held_resources.placement_groups()):
        time.sleep(0.1)
        pids = [a.pid for a in held_resources._actors().values() if a.class_name == sys.argv[2]]
    os.kill(*pids, signal.SIGKILL)
    time.sleep(2)
    runner.close()
    free = ray.available_resources().get("CPU", 0.0) / ray.cluster_resources()["CPU"]
    sys.stdout.write(f"free {free} groups {len(held_resources.placement_groups())}")
"""


@dataclass(frozen=True)
class Head:
    """A `ray start --head` of somebody else, whose folder is the usual one in `environment`."""

    process: subprocess.Popen[str]
    address: str
    environment: dict[str, str]


@contextmanager
def foreign_head(**more: str) -> Iterator[Head]:
    """On ports and in a folder of its own, which holds the file that names it afterwards too."""
    # Unix sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="f-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port = free_port()
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_worker_niceness"):
            environment.pop(name, None)
        environment.update(more)
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
             f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
             f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        named = Path(folder, "ray", "ray_current_cluster")
        try:
            until = time.monotonic() + 90
            while not named.is_file():
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.2)
            yield Head(process, named.read_text().strip(), environment)
        finally:
            end_group(process)


def run_rounds(n: int, folder: Path, timeout: float, *address: str, **environment: str) -> None:
    """Every study and every pack has its result, its CPUs are free again, and no process finds
    another cluster than its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_rounds", str(n), str(folder), *address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment}, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        end_group(process)
    assert process.returncode == 0, err[-3000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [line["what"] for line in lines] == ["study", "pack"] * n
    for line in lines:
        assert line["done"] == 1 and line["free"] == 1.0, line
        assert line["found"] == [line["cluster"]], line


def test_a_study_and_then_a_pack_again_and_again_up_to_fifty_times(tmp_path: Path) -> None:
    run_rounds(ROUNDS, tmp_path, 60 + 60 * ROUNDS)


def test_a_ray_of_ones_own_beside_a_living_one_and_the_address_of_a_dead_one(
    tmp_path: Path,
) -> None:
    with foreign_head() as head:
        other = {"RAY_ADDRESS": head.address, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
        usual = {"RAY_TMPDIR": head.environment["RAY_TMPDIR"]}
        run_rounds(1, tmp_path / "beside", 240, "local", **usual, **other)
        end_group(head.process)
        run_rounds(1, tmp_path / "after", 240, **usual)


def test_where_nothing_is_free_the_command_ends_and_says_what_holds_it(tmp_path: Path) -> None:
    with foreign_head() as head:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, head.address], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=head.environment, start_new_session=True,
        )  # fmt: skip
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            command = ["search", str(SMOKE), *SMALL, "--store", str(tmp_path / "store"), "--json"]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", IMPATIENT, *command], cwd=ROOT, capture_output=True,
                text=True, timeout=200, env={**head.environment, "RAY_ADDRESS": head.address},
            )  # fmt: skip
        finally:
            end_group(holder)
    # Starting and the report included.
    assert time.monotonic() - began < 90
    assert done.returncode == 3, done.stderr[-3000:]
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: no worker could start within"), done.stderr[-3000:]
    for told in ("wants 2 CPU", "has 2 CPU, of which 0 CPU free", "actor Holder", "is kept"):
        assert told in said, said


@pytest.mark.parametrize("killed", ["RayTrainWorker", "WarmWorkers"])
def test_what_a_killed_actor_had_reserved_is_free_for_the_next(killed: str, tmp_path: Path) -> None:
    """Ray keeps it for as long as the session lasts."""
    told = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path), killed], cwd=ROOT, capture_output=True,
        text=True, timeout=240, env={**os.environ, "RAY_ADDRESS": ""},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    # Ray itself writes of the death on the same line.
    assert told.stdout.endswith("free 1.0 groups 0"), told.stdout[-3000:]


def told_niceness(address: str, folder: Path, environment: dict[str, str]) -> tuple[int, int]:
    """Of a cluster's workers, and of those that train there."""
    told = subprocess.run(
        [sys.executable, "-c", NICENESS, address, str(folder)], cwd=ROOT, capture_output=True,
        text=True, timeout=180, env=environment,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    others, training = map(int, told.stdout.rpartition("niceness ")[2].split())
    return others, training


@pytest.mark.parametrize("given", [{}, {"RAY_worker_niceness": "0"}], ids=["as it is", "as told"])
def test_workers_that_train_do_not_give_way_on_any_cluster(
    given: dict[str, str], tmp_path: Path
) -> None:
    own = os.nice(0)
    with foreign_head(**given) as head:
        others, training = told_niceness(head.address, tmp_path, head.environment)
    assert training <= own
    assert others <= own if given else others > own


def test_nothing_gives_way_on_a_ray_of_ones_own(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_worker_niceness"}
    assert max(told_niceness("local", tmp_path, environment)) <= os.nice(0)
