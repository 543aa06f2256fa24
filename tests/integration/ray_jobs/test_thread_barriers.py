"""A worker of Ray Train bounds its threads' waits before torch, and OpenMP with it, is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN, CHOICES
from tests.integration.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is GNU's on Linux"),
]

# Two jobs of a worker that is given no pack: by a driver without a choice, and by one with one.
SCRIPT = """
import json, os, sys
from pathlib import Path
import ray
from pmlray.backends.ray import worker_pool
from pmlray.backends.ray.controllers import trainer_of
from pmlray.backends.ray.worker_plan import WorkerPlan

folder = Path(sys.argv[1])


@ray.remote(num_cpus=0)
class Workers:
    def has_workers(self, number, there): pass
    def fit(self, number, chosen):
        os.environ.update(chosen)
        plan = WorkerPlan(None, str(folder), 0, 2, 1, 60.0)
        me = ray.get_runtime_context().current_actor
        trainer_of(plan, train, f"waits-{number}", number, me).fit()


def train(config):
    note = folder / f"{config['number']}.json"
    note.write_text(json.dumps({"pid": os.getpid(), "torch": "torch" in sys.modules}))
    worker_pool.pack_stream = lambda workers, number: iter(())
    # No driver has a lease on this folder.
    worker_pool.train_in_store = lambda plan, workers, train: train()
    worker_pool.train_packs(config)
    assert "torch" in sys.modules


ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
logs = Path(ray._private.worker._global_node.get_logs_dir_path())
workers = Workers.options(max_concurrency=2).remote()
found = []
for number, chosen in enumerate(({}, {"GOMP_SPINCOUNT": "77"})):
    ray.get(workers.fit.remote(number, chosen))
    noted = json.loads((folder / f"{number}.json").read_text())
    (said,) = logs.glob(f"worker-*-{noted['pid']}.err")
    lines = [x.strip() for x in said.read_text().splitlines() if "GOMP_SPINCOUNT" in x]
    found.append({"torch": noted["torch"], "lines": lines})
ray.shutdown()
print("RESULT" + json.dumps(found))
"""


def test_openmp_in_a_worker_goes_by_what_was_chosen(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT,
        # OpenMP prints what it goes by when it is loaded.
        env={**clean, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    bounded, chosen = json.loads(line.removeprefix("RESULT"))
    # Had something loaded torch before, what is set would come too late.
    assert not bounded["torch"] and not chosen["torch"]
    (value,) = BOUNDED_SPIN.values()
    assert [x.split("]")[-1].strip() for x in bounded["lines"]] == [f"GOMP_SPINCOUNT = '{value}'"]
    assert [x.split("]")[-1].strip() for x in chosen["lines"]] == ["GOMP_SPINCOUNT = '77'"]
