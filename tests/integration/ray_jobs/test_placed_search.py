"""Whole searches over several placements: on a known law, replayed, and through real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pmlray.api.search_run import study_of
from pmlray.api.stores import open_store
from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.study.findings.result import assemble
from pmlray.study.search.law_search import LawSearch
from pmlray.study.search.plan import first_cost
from pmlray.study.search.replay_table import write_table
from pmlray.study.search.store_follower import FollowedSearch
from pmlray.types import Pack
from tests.fakes import MemoryTracker, PlacedRunner
from tests.integration.conftest import ROOT, pmlray

SMOKE = ROOT / "searches" / "placements_smoke.yaml"
DOWN = "space.placement.down={target_modules: down_proj, layers: [2], lora_rank: [1, 2, 4, 8]}"
WORTHS = {"everywhere": 1.0, "block": 1.0, "top": 1.5, "down": 0.6}
# Every pack keeps one stretch of frozen layers: those below 0, 3 (a pair beside layer 2), or 3.
LOWEST = {"everywhere": 0, "block": 3, "top": 3, "down": 3}


def search_of(*overrides: str) -> PreparedSearch:
    larger = ("space.lora_rank=[1, 2, 4, 8, 16]", "space.seq_len=[32, 64, 128]",
              "space.train_steps=[100]", "sequences=[0, 1]", "law.n_bootstrap=20",
              "design={n_initial: 6, pack_size: 8}")  # fmt: skip
    return prepare_search(SMOKE, (DOWN, *larger, *overrides))


def opened(search: PreparedSearch, folder: Path) -> tuple[LawSearch, FileStore]:
    store, cost = FileStore(folder), first_cost(search, gpu=False)
    points = study_of(search, store, cost)
    study = LawSearch(search, store, points, MemoryTracker(), cost, 9, lambda progress: None)
    return study, store


def run_to_end(study: LawSearch, runner: PlacedRunner) -> list[Pack]:
    packs: list[Pack] = []
    while (pack := study.next_pack()) is not None:
        packs.append(pack)
        study.absorb(runner.run(pack))
    return packs


def test_a_whole_search_over_placements(tmp_path: Path) -> None:
    search = search_of("budget={gpu_seconds: 1.5, memft_gpu_seconds: 5}",
                       "memft={n_points: 1, n_pairs: 2}")  # fmt: skip
    study, store = opened(search, tmp_path)
    packs = run_to_end(study, PlacedRunner(search, store, WORTHS))
    law = [o for o in store.observations() if o.phase == "law"]
    first = sorted(law, key=lambda o: (o.round, o.place))[: search.spec.design.n_initial]
    assert {o.point.placement for o in first} == set(WORTHS)
    assert sum(o.gpu_seconds for o in law) <= search.spec.budget.law_seconds
    for pack in packs:
        assert len({LOWEST[str(run.point.placement)] for run in pack.runs}) == 1
    # Packs are filled from more than one placement where they go together.
    assert any(len({run.point.placement for run in pack.runs}) > 1 for pack in packs)

    found = assemble(search.spec, store.observations(), (), store.times()).law
    assert found is not None and found.fit.places is not None
    named = {str(t.point.placement): t for t in found.targets}
    assert {n: t.placement and t.placement.name for n, t in named.items()} == {n: n for n in WORTHS}
    # What a parameter of each is worth beside one of the block, as the runner has it.
    log_worths = dict(
        zip((p.name for p in found.unseen.data.placements), found.fit.places.log_worth_K,
            strict=True)
    )  # fmt: skip
    for name, worth in WORTHS.items():
        ratio = float(np.exp(log_worths[name] - log_worths["block"]))
        assert ratio == pytest.approx(worth, rel=0.25)

    pairs = [o for o in store.observations() if o.phase == "memft"]
    assert {o.method for o in pairs} >= {"memft_ot", "memft_sw"}
    assert len({o.point for o in pairs}) == 1
    # Begun again, it has nothing left to do and knows the same; so does who watches it.
    again, _ = opened(search, tmp_path)
    assert again.next_pack() is None
    assert again.law is not None and study.law is not None
    assert again.law.to_json() == study.law.to_json()
    watched = FollowedSearch(search.spec, store).look(final=True)
    assert watched.law is not None and watched.law.to_json() == study.law.to_json()


def test_a_search_that_was_cut_off_makes_the_same_choices(tmp_path: Path) -> None:
    search = search_of("budget={gpu_seconds: 0.6}", "law.forms=[ceiling]")
    study, store = opened(search, tmp_path / "whole")
    whole = run_to_end(study, PlacedRunner(search, store, WORTHS))
    cut, other = opened(search, tmp_path / "cut")
    runner = PlacedRunner(search, other, WORTHS)
    packs: list[Pack] = []
    while (pack := cut.next_pack()) is not None:
        packs.append(pack)
        cut.absorb(runner.run(pack))
        cut, _ = opened(search, tmp_path / "cut")
    assert [pack.runs for pack in packs] == [pack.runs for pack in whole]


def test_a_search_is_replayed_from_a_table_with_placements(tmp_path: Path) -> None:
    overrides = ("budget={gpu_seconds: 0.5, memft_gpu_seconds: 1}",
                 "memft={n_points: 1, n_pairs: 1}")  # fmt: skip
    search, grid, file = search_of(*overrides), FileStore(tmp_path / "grid"), tmp_path / "t.csv"
    runs = tuple(
        search.plan_run(point, "sft", sequence, seed, "law")
        for point in search.spec.space.points()
        for sequence, seed in search.spec.replicates()
    )
    PlacedRunner(search, grid, WORTHS).run(Pack(0, runs))
    measured = {o.run_key: o for o in grid.observations()}
    assert write_table(file, measured.values(), ["made up"]) == len(measured)
    head, row = file.read_text().splitlines()[1:3]
    assert head.endswith(",placement,adapter_params") and row.split(",")[-2] in WORTHS
    spec = tmp_path / "search.yaml"
    spec.write_text(json.dumps(search.spec.model_dump(mode="json", exclude_defaults=True)))
    code, out, err = pmlray(
        "search", str(spec), "--replay", str(file), "--store", str(tmp_path / "store"),
        "--tracking-uri", f"sqlite:///{tmp_path / 'ml.db'}", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert {t["placement"] for t in found["law"]["targets"]} == set(WORTHS)
    _, store = open_store(tmp_path / "store")
    law = [o for o in store.observations() if o.phase == "law"]
    assert {o.point.placement for o in law} == set(WORTHS)
    for o in law:
        assert o.delta_loss == pytest.approx(measured[o.run_key].delta_loss, abs=1e-5)
        assert o.provenance["placement"] == measured[o.run_key].provenance["placement"]


@pytest.mark.ray
@pytest.mark.slow
def test_three_placements_through_the_real_engine(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code, out, err = pmlray(
        "search", str(SMOKE), "--store", str(store),
        "--tracking-uri", f"sqlite:///{tmp_path / 'ml.db'}", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert found["n_observations"] == 12 and found["n_failed"] == 0
    spec, kept = open_store(store)
    assert Path(found["report"]).is_file()
    names = {"everywhere", "block", "top"}
    assert {t["placement"] for t in found["law"]["targets"]} == names
    search = prepare_search(SMOKE)
    for o in kept.observations():
        placement = search.placement_of(o.point)
        told = o.provenance["placement"]
        assert told["name"] == o.point.placement in names
        assert (tuple(told["layers"]), tuple(told["modules"])) == (
            placement.layers, placement.modules,
        )  # fmt: skip
        assert o.provenance["adapter_params"] == o.point.lora_rank * search.params_per_rank_of(
            o.point
        )
        # Adapters learn something at every place, and no two are the same.
        assert o.delta_loss > 0.5
    packs = {o.round: {str(p.point.placement) for p in kept.observations() if p.round == o.round}
             for o in kept.observations()}  # fmt: skip
    assert all(len({LOWEST[name] for name in of_pack}) == 1 for of_pack in packs.values())
    assert any(len(of_pack) > 1 for of_pack in packs.values())
    assert spec.space.placement is not None and set(spec.space.placement) == names
