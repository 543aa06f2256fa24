"""The engine's benchmark: its arithmetic against torch's own count, its figures by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.model.base_model import freeze_base
from pmlray.engine.model.batches import Row, micro_batches
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.model.pull import pull_model
from pmlray.engine.scheduling.members import Member
from pmlray.types import DesignPoint, MemftRules, PlannedRun
from scripts.bench.common.resumable import ResumableParts
from scripts.bench.common.statistics import growth_exponent, paired_ratio
from scripts.bench.speed.cells import growth, ratios
from scripts.bench.speed.engine import law_figures
from scripts.bench.speed.flops import StepShape, authors_step, full_step, packed_step
from scripts.bench.speed.whole_law import (
    LAW,
    LawGrid,
    estimated_law,
    law_jobs,
    law_points,
    measured_laws,
)
from scripts.bench.speed.work import (
    Work,
    batch_at,
    collate,
    load_model,
    peft_model,
    records_of,
    tokenizer_of,
    work_from_json,
)

CPU = torch.device("cpu")
WORK = Work("tiny-random-llama", "phonebook", 40, 3, 4, dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def tiny_model() -> None:
    pull_model(WORK.model)


def counted(shape: StepShape, flops: float, squares: int) -> float:
    """Our count with attention as torch counts it: all pairs of a row, not those up to oneself."""
    g = WORK.geometry
    unseen = sum(length * (length - 1) / 2 for length in shape.lengths)
    return flops + squares * 4 * g.n_heads * g.head_dim * unseen


@pytest.mark.parametrize("layer", [1, 3])
def test_a_packed_step_is_counted_as_torch_counts_it(layer: int) -> None:
    tokenizer = tokenizer_of(WORK)
    probe = WORK.probe.model_copy(update={"layer": layer})
    base = freeze_base(load_model(WORK), tokenizer, (probe.to_placement(),), CPU)
    cache = build_prefix_cache(base, records_of(WORK, tokenizer))[:3]
    model = AdaptedModel(base, PackedLora(base, [4], [0]))
    (batch,) = micro_batches([Row(0, i, record) for i, record in enumerate(cache)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch).nll_N.sum().backward()
    shape = StepShape(tuple(r.length for r in batch.rows), tuple(r.n_scored for r in batch.rows))
    found = packed_step(WORK.geometry, layer, 4, shape)
    above = WORK.geometry.n_layers - layer - 1
    assert counted(shape, found, 3 * above) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_a_rivals_step_is_counted_as_torch_counts_it() -> None:
    tokenizer = tokenizer_of(WORK)
    batch = collate(records_of(WORK, tokenizer)[:3])
    rows, longest = batch["input_ids"].shape
    shape = StepShape((longest,) * rows, (longest,) * rows)
    model = peft_model(WORK, load_model(WORK))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**batch).loss.backward()
    found = full_step(WORK.geometry, WORK.layer, 4, shape)
    g = WORK.geometry
    squares = g.n_layers + 2 * (g.n_layers - WORK.layer - 1)
    assert counted(shape, found, squares) == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert authors_step(g, WORK.layer, 4, shape) > 1.5 * found


def test_rivals_see_the_records_in_the_engines_order() -> None:
    base = freeze_base(load_model(WORK), tokenizer_of(WORK), (WORK.probe.to_placement(),), CPU)
    cache = build_prefix_cache(base, records_of(WORK, base.tokenizer))
    point = DesignPoint(WORK.lora_rank, WORK.seq_len, WORK.train_steps)
    run = PlannedRun(point, "sft", 0, WORK.seed, "law", "0")
    member = Member(run, tuple(Row(0, i, record) for i, record in enumerate(cache)))
    assert len(cache) > WORK.batch_size
    for step in range(6):
        rows = member.rows_at(step, WORK.batch_size, MemftRules())
        assert [row.sample for row in rows] == batch_at(WORK, len(cache), step)


def test_a_growth_exponent_is_that_of_a_power() -> None:
    sizes = [1, 16, 256]
    assert growth_exponent(sizes, [3 * n**0.7 for n in sizes]) == pytest.approx(0.7)
    assert growth_exponent([8], [1.0]) is None


def test_ratios_pair_what_met_the_same_round() -> None:
    """The machine was half as fast in the second round: the ratio does not see it."""
    assert paired_ratio([8.0, 4.0, 9.0], [2.0, 1.0, 2.0]) == {
        "median": 4.0, "low": 4.0, "high": 4.5, "n": 3,
    }  # fmt: skip


def cell(way: str, n: int, rate: float, memory: int, **place: Any) -> dict[str, Any]:
    return {
        "way": way, "status": "measured", "model": "m", "task": "long_context", "seq_len": 50,
        "lora_rank": 16, "n_adapters": n, "rounds": [rate, 2 * rate],
        "peak_memory_bytes": memory, "step_memory_bytes": memory // 2,
        "adapter_steps_per_second": {"median": rate}, "place": "down_proj", **place,
    }  # fmt: skip


def test_every_pack_is_held_against_the_rivals_single_adapter_on_the_same_work() -> None:
    cells = [
        cell("pmlray", 1, 10.0, 100), cell("pmlray", 8, 40.0, 200), cell("authors", 1, 5.0, 400),
        cell("pmlray_bare", 8, 50.0, 200), cell("authors", 1, 1.0, 400, seq_len=500),
        {"way": "trl_sft", "status": "not installed", "reason": "No module named 'trl'"},
    ]  # fmt: skip
    found = {(r["over"], r["n_adapters"]): r for r in ratios(cells)}
    assert found.keys() == {("authors", 1), ("authors", 8), ("pmlray_bare", 8)}
    assert found["authors", 8]["adapter_steps_per_second"]["median"] == 8.0
    assert found["authors", 8]["peak_memory"] == 0.5
    assert found["authors", 8]["step_memory"] == 0.5
    assert found["pmlray_bare", 8]["adapter_steps_per_second"]["median"] == 0.8
    # 8 adapters' step takes 8 / 40 s, 1 adapter's 1 / 10 s; 50 tokens 1 / 5 s, 500 tokens 1 s.
    exponents = {(g["way"], g["along"]): g["exponent"] for g in growth(cells)}
    assert exponents == {
        ("pmlray", "n_adapters"): pytest.approx(1 / 3),
        ("authors", "seq_len"): pytest.approx(0.699, abs=1e-3),
    }


def test_an_estimated_law_says_so_and_pays_start_up_once_a_process() -> None:
    points = law_points("tiny-random-llama", LAW)
    assert len(points) == 24 and len(set(points)) == 24
    steps = sum(point.train_steps for point in points)
    cores = torch.get_num_threads()
    for way, starts in (("pmlray", 1), ("authors", 24)):
        job = estimated_law(way, points, 10.0, lambda _point: 0.5)
        assert job["status"] == "estimated"
        assert job["gpu_seconds"] == pytest.approx(cores * (10 * starts + 0.5 * steps))


def test_a_law_is_estimated_by_the_nearest_length_and_rank_in_the_largest_pack() -> None:
    kept = ResumableParts(None, {}, None)
    cells = [
        {**c, "start_seconds": {"median": 3.0}}
        for c in (
            # What must not be taken comes first.
            cell("pmlray", 8, 8.0, 1, lora_rank=256), cell("pmlray", 1, 10.0, 1),
            cell("pmlray", 8, 40.0, 1), cell("pmlray", 8, 2.0, 1, seq_len=500),
            cell("authors", 1, 1.0, 1, model="another"), cell("pmlray_bare", 8, 90.0, 1),
            cell("authors", 1, 5.0, 1),
        )
    ]  # fmt: skip
    packed, authors = law_figures(
        cells, "m", LawGrid((16, 400), (8,), (30, 10)), "float32", False, kept
    )
    cores = torch.get_num_threads()
    assert packed["gpu_seconds"] == pytest.approx(cores * (3 + 40 / 40 + 40 / 2))
    assert authors["gpu_seconds"] == pytest.approx(cores * (4 * 3 + 80 / 5))
    assert authors["over_pmlray"] == pytest.approx((12 + 16) / 24)
    assert packed["points"] == 4 and packed["seq_lens"] == (16, 400)


def test_ways_take_turns_at_a_law_and_the_packed_job_is_repeated_between() -> None:
    points = law_points("tiny-random-llama", LAW)
    jobs = law_jobs(points, ("authors", "trl_sft"))
    assert len({job.name for job in jobs}) == len(jobs)
    for rival in ("authors", "trl_sft"):
        assert [job.points for job in jobs if job.way == rival] == [(point,) for point in points]
    # Two rivals on eight points between one packed job and the next.
    assert [i for i, job in enumerate(jobs) if job.way == "pmlray"] == [0, 17, 34, 51]
    assert all(job.points == tuple(points) for job in jobs if job.way == "pmlray")
    assert [job.way for job in jobs[1:5]] == ["authors", "trl_sft", "authors", "trl_sft"]
    seconds = [10.0 * (i + 1) if job.way == "pmlray" else 2.0 for i, job in enumerate(jobs)]
    found = {law["way"]: law for law in measured_laws(jobs, seconds)}
    assert list(found) == ["pmlray", "authors", "trl_sft"]
    assert found["pmlray"]["gpu_seconds"] == (180 + 350) / 2
    assert found["pmlray"]["jobs"] == [10, 180, 350, 520]
    assert found["authors"]["gpu_seconds"] == found["trl_sft"]["gpu_seconds"] == 48
    assert {law["status"] for law in found.values()} == {"measured"}


def test_work_survives_its_way_to_another_process() -> None:
    assert work_from_json(WORK.to_json()) == WORK
