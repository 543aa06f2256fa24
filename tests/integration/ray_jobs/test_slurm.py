"""The Slurm script on a real Slurm: a search over two nodes that is told to end, and continues."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.engine.model.pull import pull_model
from tests.integration.conftest import ROOT
from tests.slurm import Slurm, require_slurm, slurm_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

# Short steps on a tiny model, but enough of them that the first notice meets a pack at work.
SEARCH = """name: on_slurm
task: {kind: long_context, random_ratio: 100, prompt_format: plain}
model: {id: tiny-random-llama, dtype: float32}
probe: {placement: mlp, layer: 1}
space: {lora_rank: [1, 2], seq_len: [16, 32], train_steps: [400]}
recipe: {learning_rate: 1e-2, stop_loss: 0.0, stop_gain: 0.0}
design: {n_initial: 2, pack_size: 2, targets: {lora_rank: [2], seq_len: [32]}}
budget: {gpu_seconds: 600}
memft: null
sequences: [0]
seeds: [0]
"""


def wait_until(done: Callable[[], bool], what: str, log: Path, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            pytest.fail(f"no {what} within {seconds} s; the job's log ends so: {tail(log)}")
        time.sleep(0.5)


def test_a_job_told_to_end_is_queued_again_and_its_search_continues(tmp_path: Path) -> None:
    require_slurm()
    pull_model("tiny-random-llama")
    search, store, log = tmp_path / "search.yaml", tmp_path / "store", tmp_path / "job.log"
    search.write_text(SEARCH)
    # The nodes of this Slurm have GPUs in name only.
    profile = tmp_path / "profile.yaml"
    profile.write_text("gpus_per_pack: 0\ncpus_per_pack: 1\n")

    def observations() -> list[Path]:
        return list(store.glob("*/observations/*.json"))

    with slurm_cluster() as slurm:
        job = submitted(slurm, search, store, log, profile)
        wait_until(lambda: len(observations()) >= 2, "end of a pack", log)
        first = {path: path.read_bytes() for path in observations()}
        slurm.call("scancel", "--batch", "--signal=TERM", job)
        wait_until(lambda: slurm.job(job)["Restarts"] == "1", "second start", log)
        wait_until(lambda: slurm.job(job)["JobState"] == "COMPLETED", "end of the job", log)
    assert len(observations()) == 4, tail(log)
    assert all(path.read_bytes() == found for path, found in first.items())
    keys = [json.loads(path.read_text())["run_key"] for path in observations()]
    assert len(set(keys)) == 4


def submitted(slurm: Slurm, search: Path, store: Path, log: Path, profile: Path) -> str:
    """The number of the job that the README's command queues."""
    asked = (
        f"PMLRAY_STORE={store},PMLRAY_VENV={Path(sys.prefix)},PMLRAY_PROFILE={profile},"
        f"PYTHONPATH={ROOT},OMP_NUM_THREADS=1"
    )
    told = slurm.call(
        "sbatch", "--parsable", "--nodes=2", "--gpus-per-node=1", f"--chdir={ROOT}",
        f"--export=ALL,{asked}", f"--output={log}", "cluster/slurm/search.sbatch", str(search),
    )  # fmt: skip
    return told.strip()


def tail(log: Path) -> str:
    return log.read_text()[-3000:] if log.exists() else "no log"
