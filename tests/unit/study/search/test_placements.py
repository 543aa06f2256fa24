"""A search over several placements: its plan, its packs, its law, its table and its replay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pmlray.api.search_run import study_of
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import DataError
from pmlray.study.findings.fitted_runs import fit_observations
from pmlray.study.findings.result import SearchResult, assemble
from pmlray.study.run_names import pair_name, run_name, run_tags
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.memft_schedule import law_at_points
from pmlray.study.search.plan import first_cost, plan_search
from pmlray.study.search.remaining_cost import measured_cost
from pmlray.study.search.replay_table import TableRunner, read_table, write_table
from pmlray.study.search.replayed_placements import table_for
from pmlray.types import DesignPoint, Observation, Pack
from tests.fakes import MemoryTracker, PlacedRunner

PLACEMENTS = (
    "everywhere: {target_modules: all-linear, lora_rank: [1, 2]}",
    "block: {target_modules: mlp_block, layers: [2]}",
    "down: {target_modules: down_proj, layers: [2], lora_rank: [1, 2, 4, 8]}",
    "top: {target_modules: [q_proj, v_proj], layers: [3]}",
)
WORTHS = {"everywhere": 1.0, "block": 1.0, "down": 0.6, "top": 1.5}
SPACE = (
    "space.lora_rank=[1, 4, 16]",
    "space.seq_len=[32, 64, 128]",
    "space.train_steps=[50, 100]",
    "memft={n_points: 1, n_pairs: 2}",
)
Make = Callable[..., PreparedSearch]


@pytest.fixture
def search(make_placed_search: Make) -> PreparedSearch:
    return make_placed_search(
        *PLACEMENTS, overrides=(*SPACE, "budget={gpu_seconds: 2.5, memft_gpu_seconds: 5}")
    )


def opened(search: PreparedSearch, folder: Path) -> tuple[LawSearch, FileStore]:
    store, cost = FileStore(folder), first_cost(search, gpu=False)
    points = study_of(search, store, cost)
    study = LawSearch(search, store, points, MemoryTracker(), cost, 9, lambda progress: None)
    return study, store


def run_to_end(study: LawSearch, runner: PlacedRunner | TableRunner) -> list[Pack]:
    packs: list[Pack] = []
    while (pack := study.next_pack()) is not None:
        packs.append(pack)
        study.absorb(runner.run(pack))
    return packs


def result_of(search: PreparedSearch, store: FileStore) -> SearchResult:
    return assemble(search.spec, store.observations(), store.failures(), store.times())


def test_a_plan_names_the_placement_of_each_run(search: PreparedSearch) -> None:
    plan = plan_search(search, gpu=False)
    stored = json.loads(json.dumps(plan.to_json()))
    assert len(stored["candidates"]) == (2 + 3 + 4 + 3) * 3 * 2
    assert {c["placement"] for c in stored["candidates"]} == set(WORTHS)
    assert {r["placement"] for r in stored["first_pack"]} == set(WORTHS)
    assert "placement=everywhere lora_rank=" in plan.describe()


def test_a_run_s_name_and_tags_tell_its_placement(search: PreparedSearch) -> None:
    run = search.plan_run(DesignPoint(4, 32, 50, "top"), "sft", 0, 0, "law")
    assert run_name(run) == f"r4 l32 t50 top sft {run.run_key[:4]}"
    assert run_tags(run)["pmlray.placement"] == "top"
    plain = replace(run, point=replace(run.point, placement=None))
    assert run_name(plain) == f"r4 l32 t50 sft {run.run_key[:4]}"
    # What is compared at one point differs by its method, and shares its pair.
    compared = [replace(plain, method=m, phase="memft") for m in ("sft", "memft_ot")]
    assert [run_name(r).split(" ")[0] for r in compared] == ["sft", "memft_ot"]
    (pair,) = {pair_name(r) for r in compared}
    assert pair == "lora_rank=4 seq_len=32 train_steps=50 sequence=0 seed=0"
    assert "pmlray.placement" not in run_tags(plain)


def test_a_store_tells_the_cost_of_ranks_and_placements(
    search: PreparedSearch, tmp_path: Path
) -> None:
    """As the search itself has it: the sizes of a known base are no secret of its runs."""
    store, cost = FileStore(tmp_path), first_cost(search, gpu=False)
    points = [DesignPoint(1, 32, 50, "top"), DesignPoint(2, 64, 100, "everywhere")]
    runs = tuple(search.plan_run(point, "sft", 0, 0, "law") for point in points)
    assert not measured_cost(search.spec, ()).measured
    PlacedRunner(search, store, WORTHS).run(Pack(0, runs))
    found = measured_cost(search.spec, store.observations())
    for point in search.spec.space.points():
        assert found.predict(point) == pytest.approx(cost.predict(point))
    # A base that this machine does not know: all placements count as equal work.
    elsewhere = search.spec.model_copy(
        update={"model": search.spec.model.model_copy(update={"id": "some/base"})}
    )
    rough = measured_cost(elsewhere, store.observations())
    (top, block) = (rough.predict(DesignPoint(1, 64, 100, name)) for name in ("top", "block"))
    assert rough.measured and top == block > 0


def test_the_law_of_the_placements_that_have_runs(search: PreparedSearch, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    points = [p for p in search.spec.space.points() if p.placement in ("block", "top")]
    runs = tuple(search.plan_run(point, "sft", 0, 0, "law") for point in points)
    PlacedRunner(search, store, WORTHS).run(Pack(0, runs))
    both = store.observations()
    law = fit_observations(search.spec, both)
    assert law is not None
    assert [str(t.point.placement) for t in law.targets] == ["block", "top"]
    at = law_at_points(law, both)
    for own, other in pairwise(at(DesignPoint(4, 64, 100, n)) for n in ("block", "top")):
        assert own is not None and other is not None and own != other
    assert at(DesignPoint(2, 64, 100, "everywhere")) is None
    one = [o for o in both if o.point.placement == "top"]
    alone = fit_observations(search.spec, one)
    assert alone is not None and alone.targets[0].placement is None
    assert [t.point.placement for t in alone.targets] == ["top"]
    assert law_at_points(alone, one)(DesignPoint(4, 64, 100, "block")) is None


@pytest.fixture
def exhaustive(search: PreparedSearch, tmp_path: Path) -> tuple[Observation, ...]:
    store = FileStore(tmp_path / "grid")
    runs = tuple(
        search.plan_run(point, "sft", sequence, seed, "law")
        for point in search.spec.space.points()
        for sequence, seed in search.spec.replicates()
    )
    PlacedRunner(search, store, WORTHS).run(Pack(0, runs))
    return store.observations()


def test_a_table_of_other_placements_is_refused(
    search: PreparedSearch,
    exhaustive: tuple[Observation, ...],
    make_placed_search: Make,
    tmp_path: Path,
) -> None:
    file = tmp_path / "table.csv"

    def refused(search: PreparedSearch, observations: list[Observation], said: str) -> None:
        write_table(file, observations, [])
        with pytest.raises(DataError, match=said):
            table_for(search, read_table(file), str(file))

    some = [o for o in exhaustive if o.point.placement != "top"]
    refused(search, some, r"table.csv: no rows of the placement top; it has block, down, everyw")
    plain = [replace(o, point=replace(o.point, placement=None)) for o in exhaustive]
    refused(search, plain, "rows without a placement, but the search has the placements block, dow")
    moved = PLACEMENTS[-1].replace("layers: [3]", "layers: [2, 3]")
    other = make_placed_search(*PLACEMENTS[:-1], moved)
    refused(other, list(exhaustive), r"rank 1 at top has 224 parameters, but 448 where space.plac")
    one = make_placed_search(
        overrides=("space.placement=null", "adapter={target_modules: [q_proj, v_proj]}")
    )
    refused(one, list(exhaustive), r"of the placements block, down, everywhere, top, but the sear")
    # A search with one place takes a table of any one.
    write_table(file, [o for o in exhaustive if o.point.placement == "top"], [])
    assert table_for(one, read_table(file), str(file)).placements == {None}
