"""The engine's benchmark: all ways do the same work, and their processes take turns."""

from __future__ import annotations

import importlib.util
import subprocess
import time

import pytest
import torch

from pmlray.engine.model.device import multiplies_bfloat16
from pmlray.engine.model.pull import pull_model
from scripts.bench.speed.cells import RIVALS, Plan, measure_group, ratios
from scripts.bench.speed.ways import way_named
from scripts.bench.speed.whole_law import Job, LawGrid, job_seconds, law_points
from scripts.bench.speed.work import Dtype, Work

pytestmark = pytest.mark.slow

TINY = "tiny-random-llama"
# As the benchmark picks it.
DTYPE: Dtype = "bfloat16" if multiplies_bfloat16(torch.device("cpu")) else "float32"
HAS_TRL = importlib.util.find_spec("trl") is not None


@pytest.fixture(scope="module", autouse=True)
def tiny_model() -> None:
    pull_model(TINY)


class Counted:
    def __init__(self) -> None:
        self.steps = 0

    def stepped(self, replayed: bool = False) -> None:
        self.steps += 1


@pytest.mark.parametrize(
    ("task", "seq_len", "batch"), [("phonebook", 40, 2), ("long_context", 24, 1)]
)
@pytest.mark.parametrize("way", ["pmlray_bare", *RIVALS])
def test_all_ways_train_the_same_adapter(
    monkeypatch: pytest.MonkeyPatch, way: str, task: str, seq_len: int, batch: int
) -> None:
    # DeepSpeed's ways set it when nobody has; here it must not outlive the test.
    monkeypatch.setenv("LOCAL_RANK", "0")
    if way == "trl_sft" and not HAS_TRL:
        pytest.skip("trl is not installed; the benchmark says so in its cells")
    work = Work(TINY, task, seq_len, batch, 4, dtype="float32", train_steps=5)  # type: ignore[arg-type]
    found = []
    for name in ("pmlray", way):
        counted = Counted()
        found.append(way_named(name)(work, counted))
        assert counted.steps == 5
    for ours, theirs in zip(*found, strict=True):
        # B moves by about the learning rate (1e-3) a step.
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=2e-5)
    assert found[0][1].abs().max() > 1e-3


def test_a_group_of_cells_in_processes_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    work = Work(TINY, "phonebook", 40, 2, 4, dtype=DTYPE)
    plan = Plan(repeats=2, block_seconds=0.01, resident=True)
    cells = measure_group(work, (2,), plan, ("authors", "trl_sft"))
    by_way = {cell["way"]: cell for cell in cells}
    if not HAS_TRL:
        absent = by_way.pop("trl_sft")
        assert absent["status"] == "not installed" and "No module named" in absent["reason"]
    assert by_way.keys() >= {"pmlray", "pmlray_bare", "authors"}
    for cell in by_way.values():
        assert cell["status"] == "measured"
        assert cell["adapter_steps_per_second"]["n"] == 2
        assert cell["adapter_steps_per_second"]["low"] > 0
        assert 0 < cell["share_of_matmul_peak"]["median"] < 1
        assert cell["captured"] == 0 or torch.cuda.is_available()
        assert cell["peak_memory_bytes"] >= cell["step_memory_bytes"] > 10**8
        assert cell["start_seconds"]["median"] > 0
    assert {r["over"] for r in ratios(cells)} >= {"pmlray_bare", "authors"}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("way", ["pmlray", "authors"])
def test_a_job_is_measured_with_its_start_up(way: str) -> None:
    points = law_points(TINY, LawGrid((8, 16), (2,), (5, 10, 20, 40)), DTYPE)
    begun = time.perf_counter()
    seconds = job_seconds(Job(way, "whole", tuple(points)))
    assert 0 < seconds <= (time.perf_counter() - begun) * torch.get_num_threads()


def test_a_job_that_fails_is_no_measurement() -> None:
    (point, *_) = law_points("no such model", LawGrid((8,), (2,), (5,)), DTYPE)
    with pytest.raises(subprocess.CalledProcessError):
        job_seconds(Job("authors", "none", (point,)))
