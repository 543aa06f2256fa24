"""A base sharded over two workers by ZeRO-3 trains as the packed engine does, and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmlray.backends.mlflow_system import node_name
from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SCRIPT = """
import json, os, sys
from pathlib import Path
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig
from ray.train.torch import TorchTrainer
from pmlray.backends.file_store import FileStore
from pmlray.backends.mlflow_runs import run_times
from pmlray.backends.node_load import loads_of
from pmlray.backends.ray_sharded import WorkerPlan, train_sharded
from pmlray.config.prepared import prepare_search
from pmlray.engine.measure import measure_pack
from pmlray.engine.pull import pull_model
from pmlray.engine.stepper import TorchStepper
from pmlray.types import DesignPoint, Pack

folder = Path(sys.argv[1])
pull_model("tiny-random-llama")
search = prepare_search(folder / "search.yaml")
points = [DesignPoint(4, 50, 6), DesignPoint(2, 50, 3)]
pack = Pack(0, tuple(search.plan_run(point, "sft", 0, 0, "law") for point in points))


def losses(store):
    return [[o.base_loss, o.final_loss, list(o.token_p)] for o in store.observations()]


def train(config):
    from pmlray.backends import zero3
    from pmlray.engine import head
    # Less than the logits of a record: they are made in chunks.
    head.CPU_LOGITS_BYTES = 4 * 4 * 258
    # The tiny model's matrices are to be sharded too.
    zero3.SMALL_WEIGHTS, zero3.STEPS_BETWEEN_CHECKPOINTS = 4096, 2
    store, take = Path(config["plan"].store), zero3.ShardedRun._take_step
    lost = store / "lost"
    def take_step(self):
        with (store / "steps.txt").open("a") as file:
            file.write(f"{self.step} {self._rank}\\n")
        if config["loses"] and self.step == 5 and not lost.exists():
            if self._rank == 1:
                lost.touch()
            raise RuntimeError("a worker is lost")
        take(self)
    zero3.ShardedRun._take_step = take_step
    load = zero3.load_base
    def load_base(search):
        with (store / "loads.txt").open("a") as file:
            file.write("load\\n")
        return load(search)
    zero3.load_base = load_base
    return train_sharded(config)


def fit(name, loses):
    plan = WorkerPlan(search, str(folder / name), 0, 1, 1, 60.0, 2)
    store = FileStore(folder / name)
    TorchTrainer(
        train,
        train_loop_config={"plan": plan, "pack": pack, "loses": loses},
        scaling_config=plan.scaling(),
        run_config=RunConfig(name=pack.pack_id, storage_path=plan.storage,
                             failure_config=FailureConfig(max_failures=1),
                             checkpoint_config=CheckpointConfig(num_to_keep=1)),
    ).fit()
    return losses(store)


packed = FileStore(folder / "packed")
measure_pack(search, pack, packed, packed.adapters, TorchStepper, {})
found = {"packed": losses(packed)}
ray.init("local", num_cpus=2, log_to_driver=False)
found["two"] = fit("two", False)
found["lost"] = fit("lost", True)
found["steps"] = (folder / "lost" / "steps.txt").read_text().splitlines()
found["loads"] = {n: len((folder / n / "loads.txt").read_text().split()) for n in ("two", "lost")}
ray.shutdown()
sharded = FileStore(folder / "two").observations()
found["times"] = [run_times(o, 0) for o in sharded]
found["said"] = {name: [o.provenance for o in FileStore(folder / name).observations()]
                 for name in ("packed", "two")}
found["nodes"] = [[load.round, load.node] for load in loads_of(folder / "two", [0])]
print("RESULT" + json.dumps(found))
"""

SEARCH = """\
name: sharded
task: {kind: phonebook, prompt_format: plain}
model: {id: tiny-random-llama, dtype: float32}
probe: {placement: down_proj, layer: 1}
space: {lora_rank: [4], seq_len: [50], train_steps: [6]}
recipe: {batch_size: 3, learning_rate: 3e-2, warmup_steps: 0, stop_loss: 0.0, stop_gain: 0.0}
evaluate: {generate_max_tokens: 0, control_tokens: 0}
design: {n_initial: 1}
budget: {gpu_seconds: 1000}
sequences: [0]
seeds: [0]
"""


def test_two_workers_equal_one_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, env={**os.environ},
        capture_output=True, text=True, timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    found = json.loads(line.removeprefix("RESULT"))
    packed, two, lost = found["packed"], found["two"], found["lost"]
    # Three records a step over two workers: the packed engine, on one device, is the oracle.
    assert len(packed) == len(two) == len(lost) == 2
    for oracle, sharded, resumed in zip(packed, two, lost, strict=True):
        assert oracle[1] < oracle[0] - 0.01
        assert sharded[:2] == pytest.approx(oracle[:2], rel=1e-5)
        assert sharded[2] == pytest.approx(oracle[2], rel=1e-3)
        assert resumed[:2] == pytest.approx(sharded[:2], rel=1e-6)
    steps = [int(line.split()[0]) for line in found["steps"] if line.endswith(" 0")]
    # What came after the checkpoint at step 4 is done again, and nothing before it.
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2]
    # Each worker loads the base once for both runs, and again only where it was started again.
    assert found["loads"] == {"two": 2, "lost": 4}
    # One of the node's two workers sampled it.
    assert found["nodes"] == [[0, node_name()]]
    # MLflow shows when they trained; times of day are kept to the second.
    for start, end in found["times"]:
        assert 1000 * (began - 1) < start < end < 1000 * time.time()
    for oracle, sharded in zip(found["said"]["packed"], found["said"]["two"], strict=True):
        assert sharded["zero_stage"] == 3 and sharded["devices"] == 2
        for name in ("content_hash", "n_records", "model", "adapter_params_per_rank"):
            assert sharded[name] == oracle[name]
        assert oracle["versions"].items() <= sharded["versions"].items()
