"""Bases sharded over two workers by ZeRO-3 train as the packed engine does, pack after pack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmlray.backends.mlflow.system_metrics import node_name
from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR
from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN, CHOICES
from tests.integration.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SCRIPT = """
import gc, json, os, shutil, sys
from dataclasses import asdict, replace
from pathlib import Path
import ray
from pmlray.backends.ray import worker_pool
from pmlray.backends.store.file_store import FileStore
from pmlray.backends.mlflow.runs import run_times
from pmlray.backends.mlflow.node_load import loads_of
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.config.prepared_search import prepare_search
from pmlray.engine.runtime.malloc_settings import CPU_ALLOCATOR
from pmlray.engine.runtime.thread_barriers import BOUNDED_SPIN
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.pull import pull_model
from pmlray.engine.training.step import TorchStepper
from pmlray.types import DesignPoint, Pack

STARTED_WITH = {**CPU_ALLOCATOR, **BOUNDED_SPIN}
folder = Path(sys.argv[1])
pull_model("tiny-random-llama")
search = prepare_search(folder / "search.yaml")


def pack(number, seed, *points):
    runs = (search.plan_run(DesignPoint(*point), "sft", 0, seed, "law") for point in points)
    return Pack(number, tuple(runs))


first = pack(0, 1, (3, 50, 4))
probed = pack(1, 0, (4, 50, 6), (2, 50, 3))
last = pack(2, 2, (1, 50, 2), (3, 30, 4))
# Of which the first step spends all that there is.
limited = replace(pack(4, 3, (1, 50, 4), (2, 50, 4)), gpu_seconds=1e-6)


def learnt(store):
    found = [store.observation(run.run_key) for run in probed.runs]
    weights = [(store.adapters / o.run_key / "adapter_model.safetensors").read_bytes().hex()
               for o in found]
    return [[o.base_loss, o.final_loss, list(o.token_p), list(o.curve), w]
            for o, w in zip(found, weights)]


def train(config):
    import torch
    from pmlray.backends.mlflow import system_metrics
    from pmlray.backends.ray import sharded_workers
    from pmlray.backends.deepspeed import zero3_run
    from pmlray.backends.deepspeed import zero3_packs
    from pmlray.engine.model import head
    # Each pack is sampled, however short it is and however busy the machine.
    system_metrics.SHORTEST_SECONDS, system_metrics.ANSWER_SECONDS = 0.0, 60.0
    # Less than the logits of a record: they are made in chunks.
    head.CPU_LOGITS_BYTES = 4 * 4 * 258
    # The tiny model's matrices are to be sharded too.
    zero3_run.SMALL_WEIGHTS = 4096
    store, take = Path(config["plan"].store), zero3_run.ShardedRun._take_step
    dies, rank = store / "dies", torch.distributed.get_rank()
    def note(name, word):
        with (store / f"{name}{rank}.txt").open("a") as file:
            file.write(f"{word}\\n")
    def take_step(self):
        note("steps", self.step)
        if rank == 1 and self.step == 5 and dies.exists():
            dies.unlink()
            os._exit(1)
        take(self)
    zero3_run.ShardedRun._take_step = take_step
    # As the process was started, which is when the C library reads it.
    started = Path("/proc/self/environ").read_text().split(chr(0))
    note("environment", [f"{k}={v}" in started for k, v in STARTED_WITH.items()])
    bases, load = [], zero3_packs.load_base
    def load_base(search):
        note("loads", "load")
        bases.append(load(search))
        return bases[-1]
    zero3_packs.load_base = load_base
    let_go = sharded_workers.let_go_of_pack
    def let_go_of_pack():
        let_go()
        alive = [o for o in gc.get_objects() if isinstance(o, (torch.Tensor, torch.nn.Module))]
        tensors = [o for o in alive if isinstance(o, torch.Tensor)]
        hooks = sum(len(d) for m in bases[-1].modules() for n, d in vars(m).items()
                    if n.endswith("_hooks"))
        note("alive", [len(tensors), sum(t.numel() for t in tensors), len(alive), hooks])
    sharded_workers.let_go_of_pack = let_go_of_pack
    sharded_workers.train_sharded_packs(config)


class Workers(worker_pool.WarmWorkers):
    def _train(self, job, me):
        worker_pool.train_sharded_packs, worker_pool.POLL_SECONDS = train, 0.2
        super()._train(job, me)

    def close(self):
        super().close()
        for job in self._jobs.values():
            job.ended.result(timeout=60)


def fit(store):
    with store.driver_lock() as driver:
        plan = WorkerPlan(search, str(store.folder), 0, 1, driver.generation, 0.0, 2)
        workers = ray.remote(Workers).options(num_cpus=0, max_concurrency=8).remote(plan)

        def run(pack):
            outcome = ray.get(workers.run.remote(pack))
            assert outcome.training_seconds > 0, outcome

        for each in (first, probed, limited, last):
            run(each)
        # As after a restart: what two runs have cost leaves nothing for a third.
        paid = sum(store.observation(r.run_key).gpu_seconds for r in last.runs)
        more = Pack(2, last.runs + pack(2, 4, (1, 50, 2)).runs, gpu_seconds=paid)
        assert ray.get(workers.run.remote(more)).training_seconds == 0.0
        found = {"undisturbed": learnt(store)}
        # Once more, on the same workers: one is lost, and all start again with a new base.
        for each in probed.runs:
            (store.folder / "observations" / f"{each.run_key}.json").unlink()
            shutil.rmtree(store.adapters / each.run_key)
        (store.folder / "dies").touch()
        run(Pack(3, probed.runs))
        ray.get(workers.close.remote())
        ray.kill(workers)
    read = lambda kind, rank: (store.folder / f"{kind}{rank}.txt").read_text().splitlines()
    return {**found, "lost": learnt(store), "steps": read("steps", 0),
            "left_out": [asdict(f) for f in store.failures()],
            "loads": [len(read("loads", rank)) for rank in (0, 1)],
            "alive": [list(map(json.loads, read("alive", rank))) for rank in (0, 1)],
            "environment": [read("environment", rank) for rank in (0, 1)]}


packed = FileStore(folder / "packed")
measure_pack(search, probed, packed, packed.adapters, TorchStepper, {})
found = {"packed": learnt(packed)}
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
sharded = FileStore(folder / "sharded")
found["sharded"] = fit(sharded)
ray.shutdown()
found["times"] = [run_times(o, 0) for o in sharded.observations()]
found["said"] = [[store.observation(run.run_key).provenance for run in probed.runs]
                 for store in (packed, sharded)]
found["nodes"] = [[load.round, load.node] for load in loads_of(sharded.folder, range(3))]
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


def test_workers_that_stay_equal_one_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in {*CPU_ALLOCATOR, *CHOICES}},
        capture_output=True, text=True, timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    found = json.loads(line.removeprefix("RESULT"))
    packed, sharded = found["packed"], found["sharded"]
    # Three records a step over two workers: the packed engine, on one device, is the oracle.
    assert len(packed) == len(sharded["undisturbed"]) == 2
    for oracle, one in zip(packed, sharded["undisturbed"], strict=True):
        assert oracle[1] < oracle[0] - 0.01
        assert one[:2] == pytest.approx(oracle[:2], rel=1e-5)
        assert one[2] == pytest.approx(oracle[2], rel=1e-3)
    # Bit for bit the same, adapters too: second on a base, and cut off and first on another.
    assert sharded["lost"] == sharded["undisturbed"]
    # What came before the last checkpoint is not done again.
    assert sharded["steps"][-10:] == [*"0123455", *"012"]
    # Each worker loads the base once for all packs, and again only where it was started again.
    assert sharded["loads"] == [2, 2]
    # Ray starts them with what the C library and OpenMP read once, in place of a worker that was
    # lost too.
    n_variables = len(CPU_ALLOCATOR) + len(BOUNDED_SPIN)
    assert sharded["environment"] == [[str([True] * n_variables)] * 2] * 2
    # A pack leaves nothing behind, nor does a run that was left out as it trained.
    for alive in sharded["alive"]:
        assert len(alive) == 6 and alive[2] == alive[3] == alive[0]
    after_restart, begun, never = sharded["left_out"]
    assert begun["left_out"] and begun["gpu_seconds"] > 0 and begun["place"] == 0
    assert never["left_out"] and never["gpu_seconds"] == 0.0 and never["place"] == 1
    assert after_restart["left_out"] and after_restart["gpu_seconds"] == 0.0
    # Of every pack, by one of the node's two workers; the third comes twice.
    assert found["nodes"] == [[pack, node_name()] for pack in (0, 1, 2, 2)]
    # MLflow shows when they trained; times of day are kept to the second.
    for start, end in found["times"]:
        assert 1000 * (began - 1) < start < end < 1000 * time.time()
    for oracle, said in zip(*found["said"], strict=True):
        assert said["zero_stage"] == 3 and said["devices"] == 2
        for name in ("content_hash", "n_records", "model", "adapter_params_per_rank"):
            assert said[name] == oracle[name]
        assert oracle["versions"].items() <= said["versions"].items()
