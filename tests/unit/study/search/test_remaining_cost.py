"""What a search would still measure, told from its grid and what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.api.search_run import study_of
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.design import CostModel
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.memft_schedule import compared_points
from pmlray.study.search.remaining_cost import measured_cost, open_seconds
from pmlray.types import DesignPoint, FailedRun, Pack, Phase, PlannedRun
from tests.fakes import TRUE_LAW, MemoryTracker, SyntheticRunner, observe

# What the runs of SyntheticRunner really cost: 0.1 gpu_seconds a token in 100 steps.
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)
# 5 ranks, 2 texts.
WHOLE_GRID = 5 * 2 * 0.1 * (16 + 32 + 64 + 128)


def true_delta(point: DesignPoint) -> float:
    return float(TRUE_LAW.predict(point.lora_rank, point.seq_len, point.train_steps))


def seconds(runs: Iterable[PlannedRun]) -> float:
    return sum(0.1 * run.point.seq_len for run in runs)


def test_open_runs_are_those_that_are_still_made_however_much_budget_is_left(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search(
        "budget={gpu_seconds: 5000, memft_gpu_seconds: 5000}",
        "law={forms: [power], n_bootstrap: 20}",
        "design.pack_size=10",
    )
    store = FileStore(tmp_path)
    points = study_of(search, store, COST)
    study = LawSearch(search, store, points, MemoryTracker(), COST, 9, lambda progress: None)
    assert study.progress().gpu_seconds_open == math.inf
    runner = SyntheticRunner(store, fails=lambda run: run.point == DesignPoint(1, 16, 100))
    to_come, packs = WHOLE_GRID, list[Pack]()
    while (pack := study.next_pack()) is not None and pack.runs[0].phase == "law":
        study.absorb(runner.run(pack))
        to_come -= seconds(pack.runs)
        assert study.progress().gpu_seconds_open == pytest.approx(to_come)
        assert study.progress().gpu_seconds_left > 4000
    assert to_come == pytest.approx(0.0) and len(store.failures()) == 2
    left = [study.progress().gpu_seconds_open]
    while pack is not None:
        packs.append(pack)
        study.absorb(runner.run(pack))
        left.append(study.progress().gpu_seconds_open)
        pack = study.next_pack()
    # MemFT's methods alone: the law's runs are their partners.
    assert packs and left[-1] == 0.0
    assert left[0] == pytest.approx(seconds(run for pack in packs for run in pack.runs))


def test_what_machines_failed_is_open_and_what_stopped_early_is_nobody_s_partner(
    make_search: Callable[..., PreparedSearch],
) -> None:
    search = make_search("memft={n_points: 1, n_pairs: 2}")
    cost = replace(COST, measured=True)
    ((point, _, _), _) = compared_points(search.spec, true_delta, 12.0)
    whole, short = (
        observe(search.plan_run(point, "sft", sequence, 0, "law"), 0, sequence, 0.0, 1e-3)
        for sequence in (0, 1)
    )
    short = replace(short, curve=short.curve[:1])
    elsewhere = next(p for p in search.spec.space.points() if p != point)
    lost = [FailedRun("x", elsewhere, 0, 0, "a node went away", 1.0, infrastructure=True)]
    each = 0.1 * point.seq_len

    def left(phase: Phase) -> float:
        return open_seconds(search.spec, phase, (whole, short), lost, true_delta, cost)

    assert left("law") == pytest.approx(WHOLE_GRID - 2 * each)
    # Two texts, three methods: one run of the law serves.
    assert left("memft") == pytest.approx((2 * 3 - 1) * each)


def test_a_store_tells_the_rate_without_the_base_s_sizes(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search, store = make_search(), FileStore(tmp_path)
    run = search.plan_run(DesignPoint(1, 16, 100), "sft", 0, 0, "law")
    assert not measured_cost(search.spec, ()).measured
    SyntheticRunner(store).run(Pack(0, (run,)))
    # 1.6 gpu_seconds for 100 steps of 16 tokens and as many of their prompt.
    assert measured_cost(search.spec, store.observations()).predict(
        DesignPoint(8, 48, 50)
    ) == pytest.approx(1.6 * 50 * (48 + 16) / (100 * (16 + 16)))
