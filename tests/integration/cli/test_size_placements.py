"""`pmlray size` where several placements are compared; training is made up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pmlray.api.search_run import SearchRun
from pmlray.api.sizing import law as sizing_law
from pmlray.api.sizing import packs as sizing_packs
from pmlray.api.sizing import run as sizing_driver
from pmlray.api.sizing.plan import SizePlan, SizeRequest, prepare_size
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.bases.models import TINY
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.adapters.stored_adapter import read_adapter
from pmlray.errors import SpecError
from pmlray.law import CeilingLaw
from pmlray.memory import RecordSource
from pmlray.study.sizing.decoded_records import DecodedRecords
from pmlray.study.sizing.request import Wanted
from pmlray.types import Observation, PlannedRun
from tests.unit.cli.test_size import (
    N_RECORDS,
    STEPS,
    by_law,
    invoke,
    records,
    refused,
    size_json,
    stored_law,
)

__all__ = ["records"]
# Of parameters, in hundreds, whatever the placement.
LAW = CeilingLaw(9.0, 0.7, 0.4, 0.0, 5.0, 7.5)
NAMES = ["all-linear", "q_proj+v_proj", "gate_proj+up_proj+down_proj-2-3", "down_proj-2"]
# Parameters are worth the same everywhere, and its ranks are the finest.
BEST = "down_proj-2"
# Parameters with which an adapter is made to recall every record.
HOLDS = 1800


def measured(search: PreparedSearch, run: PlannedRun, place: int) -> Observation:
    """What a run measures whose parameters are worth the same everywhere."""
    params = run.point.lora_rank * search.params_per_rank_of(run.point)
    delta = float(LAW.predict(params / 100.0, run.point.seq_len, run.point.train_steps))
    o = by_law(run, place, 0.0)
    told = {**o.provenance, "placement": placement_facts(search, run.point)}
    harm = 0.3 if run.point.placement == BEST else 0.1
    prose = -harm + 0.01 * (-1) ** place
    return replace(o, final_loss=7.5 - delta, provenance=told, prose_delta_loss=prose)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Instead of Ray: measures by the law, and recalls with enough parameters; tells what was
    trained."""
    told: list[tuple[str, int]] = []

    def put(search: PreparedSearch, store: FileStore, run: PlannedRun, place: int) -> None:
        store.put(measured(search, run, place))
        rank, shapes = run.point.lora_rank, search.source.geometry.adaptable
        sites = search.placement_of(run.point)
        weights = {
            site: (torch.zeros(shapes[site.module][0], rank),
                   torch.zeros(rank, shapes[site.module][1]))
            for site in sites.sites
        }  # fmt: skip
        save_adapter(store.adapters / run.run_key, sites, weights, TINY)

    def measure(
        search: PreparedSearch, store: FileStore, driver: Lease, runs: Sequence[PlannedRun],
        *rest: object,
    ) -> None:  # fmt: skip
        done = {o.run_key for o in store.observations()}
        for place, run in enumerate(run for run in runs if run.run_key not in done):
            told.append((search.place_name(run.point), run.point.lora_rank))
            put(search, store, run, place)

    def run_search(run: SearchRun, announce: object) -> None:
        store = FileStore(run.store)
        (run.store / "search.json").write_text(run.search.spec.model_dump_json())
        done = {o.run_key for o in store.observations()}
        for place, point in enumerate(run.search.spec.space.points()):
            planned = run.search.plan_run(point, "sft", 1, 0, "law")
            if point.train_steps == STEPS and planned.run_key not in done:
                put(run.search, store, planned, place)

    def check(search: PreparedSearch, folder: Path, say: object) -> DecodedRecords:
        pairs = search.task.pairs or ()
        enough = read_adapter(folder).lora_rank * search.params_per_rank >= HOLDS
        right = (enough, *[True] * (len(pairs) - 1))
        return DecodedRecords(pairs, tuple(target for _, target in pairs), right, right)

    monkeypatch.setattr(sizing_packs, "measure", measure)
    monkeypatch.setattr(sizing_law, "run_search", run_search)
    monkeypatch.setattr(sizing_driver, "decode_task", check)
    return told


def test_a_dry_run_says_what_is_tried_and_what_it_costs(records: Path, tmp_path: Path) -> None:
    dry = ["--records", records, "--placement", "auto", "--dry-run", "--address", "10.0.0.1:6379"]
    plan = size_json(*dry, "--out", tmp_path / "out")
    assert [row["name"] for row in plan["placements"]] == NAMES and plan["prefer"] == "parameters"
    assert [row["params_per_rank"] for row in plan["placements"]] == [4096, 896, 1152, 192]
    costs = [row["predicted_training_gpu_seconds"] for row in plan["placements"]]
    assert plan["predicted_training_gpu_seconds"] == max(costs) > costs[-1] > 0.0
    alone = size_json(*dry[:2], *dry[4:])
    assert plan["predicted_search_gpu_seconds"] > alone["predicted_search_gpu_seconds"]
    text = invoke("size", "--model", TINY, *dry).stdout
    assert "down_proj-2 (down_proj of layer 2): ranks [1, 2, 4, 8], 192 parameters a rank" in text
    assert "choose the placement with the fewest parameters, and its rank" in text
    mine = ["--placement", "mlp_block@1", "--placement", "q_proj@2-3", "--alpha", "2r"]
    plan = size_json(*dry[:2], *mine, *dry[4:])
    assert [row["placement"] for row in plan["placements"]] == [
        "mlp_block of layer 1, alpha 2r", "q_proj of layers 2 to 3, alpha 2r"
    ]  # fmt: skip
    one = size_json(*dry[:2], "--placement", "q_proj@2-3", *dry[4:])
    assert one["placement"] == "q_proj of layers 2 to 3" and "placements" not in one


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--placement", "auto", "--layers", "1"], "--layers is of one placement"),
        (["--placement", "auto", "--placement", "x_proj"], "--placement: tiny-random-llama's"),
        (["--placement", "auto", "--placement", "down_proj@2"], "is where down_proj-2 is"),
        (["--placement", "q_proj@1", "--layers", "1"], "both name layers"),
        (["--placement", "auto", "--alpha", "0r"], "--alpha is a number above 0"),
        (["--prefer", "prose"], "chooses among placements: give --placement auto"),
        (["--budget", "0"], "--budget is 0; it is gpu_seconds above 0"),
        (
            ["--placement", "auto", "--budget", "0.01", "--dry-run", "--address", "10.0.0.1:6379"],
            "but the first 8 runs that compare 4 placements take about",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    records: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    arguments = ["size", "--model", TINY, "--records", records, "--out", tmp_path / "out"]
    assert says in refused(SpecError, *arguments, *options)
    assert not (tmp_path / "out").exists()


def test_the_best_placement_is_measured_chosen_trained_and_told(
    records: Path, tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    out = tmp_path / "out"
    options = ["--records", records, "--out", out, "--placement", "auto", "--steps", str(STEPS)]
    options += ["--recall", "0.9", "--confidence", "0.6"]
    found = size_json(*options)
    # Two runs at each place come first.
    assert [name for name, _ in trained[:8]] == [name for name in NAMES for _ in range(2)]
    decision, own = found["sized"]["decision"], found["adapter"]
    needed = 100.0 * LAW.invert_rank(
        found["sized"]["supervised_tokens"], STEPS, found["sized"]["needed_delta_loss"]
    )
    per_rank = dict(zip(NAMES, (4096, 896, 1152, 192), strict=True))
    exact = {name: math.ceil(needed / n) * n for name, n in per_rank.items()}
    rows = {row["placement"]: row for row in decision["placements"]}
    assert decision["chosen"] == BEST == min(rows, key=lambda name: rows[name]["parameters"])
    assert rows.keys() == exact.keys()
    for name, row in rows.items():
        assert row["parameters"] == row["trained_rank"] * per_rank[name] >= exact[name]
    # A rank that is not enough is raised where it is.
    assert own["placement"] == "down_proj of layer 2" and own["layers"] == [2]
    assert found["recall"]["reached"] and own["parameters"] == 192 * own["lora_rank"] >= HOLDS
    assert found["attempts"][0]["lora_rank"] == rows[BEST]["trained_rank"]
    assert found["recall"]["n_recalled"] == N_RECORDS
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (own["lora_rank"], ["down_proj"])
    text = (out / "adapter" / "README.md").read_text()
    assert f"placement {BEST}" in text and "PeftModel.from_pretrained" in text
    sure = f"{100 * decision['p_first']:.0f} % sure"
    assert f"{BEST} for the fewest parameters, then {decision['runner_up']}" in text
    assert sure in text and decision["told_apart"] == ("; that order is" in text)
    # Another wish is answered by what is measured already, but for the adapter itself.
    n = len(trained)
    gentle = size_json(*options, "--prefer", "prose")
    chosen = gentle["sized"]["decision"]["chosen"]
    assert chosen != BEST and not {name for name, _ in trained[n:]} & set(NAMES)
    assert gentle["adapter"]["placement"] != own["placement"]


def test_a_stored_law_of_several_placements_is_chosen_from(
    records: Path, tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    out = tmp_path / "out"
    options = ["--records", records, "--steps", str(STEPS), "--recall", "0.9"]
    options += ["--confidence", "0.6"]
    # The law of a sizing is one of several placements; its first answer is not looked at here.
    plan = prepared(records)
    (out / "law").mkdir(parents=True)
    sizing_law.run_search(SearchRun(plan.search, ClusterProfile(), out / "law", "", None), None)
    law = [*options, "--law", out / "law", "--dry-run", "--address", "10.0.0.1:6379"]
    plan = size_json(*law)
    assert [row["name"] for row in plan["placements"]] == NAMES
    assert plan["answer"]["decision"]["chosen"] == BEST
    one = size_json(*law, "--placement", "q_proj,v_proj")
    assert one["placement"] == "q_proj, v_proj of all layers" and "decision" not in one["answer"]
    assert one["answer"]["parameters"] == 896 * one["answer"]["lora_rank"]
    said = refused(SpecError, "size", "--model", TINY, *law, "--placement", "o_proj")
    assert "not at o_proj of all layers" in said
    alone = stored_law(tmp_path / "law", records)
    two = ["--placement", "all-linear", "--placement", "q_proj,v_proj"]
    said = refused(SpecError, "size", "--model", TINY, *options[:2], "--law", alone, *two)
    assert "alone and tells nothing of other places" in said
    spec = json.loads((out / "law" / "search.json").read_text())
    del spec["evaluate"]["prose"]
    (out / "law" / "search.json").write_text(json.dumps(spec))
    said = refused(SpecError, "size", "--model", TINY, *law, "--prefer", "prose")
    assert "did not measure an adapter's effect on prose" in said


def prepared(records: Path) -> SizePlan:
    """The plan of a comparison as the command line makes it."""
    return prepare_size(
        SizeRequest(
            *(
                RecordSource(records),
                TINY,
                None,
                "auto",
                Wanted(0.9, 0.6),
                None,
                None,
                None,
                None,
                None,
            ),
            *(STEPS, None, ClusterProfile()),
            compared=("auto",),
        )
    )
