"""`pmlray size` goes on from its law to an adapter that holds; training is made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from pmlray.api.search_run import SearchRun
from pmlray.api.sizing import law as sizing_law
from pmlray.api.sizing import packs as sizing_packs
from pmlray.api.sizing import run as sizing_driver
from pmlray.backends.store.file_leases import Lease
from pmlray.backends.store.file_store import FileStore
from pmlray.config.adapters.adapter_spec import Adapter
from pmlray.config.bases.models import TINY
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.adapters.stored_adapter import read_adapter
from pmlray.errors import DataError, SpecError, StoreError
from pmlray.study.sizing.decoded_records import DecodedRecords
from pmlray.types import PlannedRun
from tests.adapters import at_site
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

HOLDS = 8


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands for Ray and the decoder: adapters from rank HOLDS on recite everything, smaller ones
    all but one record. Tells which ranks were trained."""
    ranks: list[int] = []

    def measure(
        search: PreparedSearch, store: FileStore, driver: Lease, runs: Sequence[PlannedRun],
        *rest: object,
    ) -> None:  # fmt: skip
        done = {o.run_key for o in store.observations()}
        for run in (run for run in runs if run.run_key not in done):
            ranks.append(run.point.lora_rank)
            store.put(by_law(run, 0, 0.0))
            rank = run.point.lora_rank
            shapes = search.source.geometry.adaptable
            weights = {
                site: (torch.zeros(shapes[site.module][0], rank),
                       torch.zeros(rank, shapes[site.module][1]))
                for site in search.placement.sites
            }  # fmt: skip
            save_adapter(store.adapters / run.run_key, search.placement, weights, TINY)

    def check(search: PreparedSearch, folder: Path, say: object) -> DecodedRecords:
        pairs = search.task.pairs or ()
        right = [True] * len(pairs)
        right[0] = read_adapter(folder).lora_rank >= HOLDS
        targets = tuple(target for _, target in pairs)
        return DecodedRecords(pairs, targets, tuple(right), tuple(right))

    monkeypatch.setattr(sizing_packs, "measure", measure)
    monkeypatch.setattr(sizing_driver, "decode_task", check)
    return ranks


def test_the_rank_rises_until_the_check_passes_and_is_found_again(
    records: Path, tmp_path: Path, trained: list[int]
) -> None:
    law, out = stored_law(tmp_path / "law", records), tmp_path / "out"
    # So few runs near saturation leave the law less sure than that of what it promises.
    options = ["--records", records, "--law", law, "--out", out, "--recall", "0.9"]
    options += ["--confidence", "0.6", "--max-rank", "8"]
    planned = size_json(*options, "--dry-run")
    assert planned["answer"]["lora_rank"] == 7 and trained == []
    found = size_json(*options)
    assert found["sized"] == planned["answer"]
    assert trained == [7, 8] == [attempt["lora_rank"] for attempt in found["attempts"]]
    assert found["sized"]["lora_rank"] == 7 and found["adapter"]["lora_rank"] == 8
    assert found["recall"]["reached"] and found["recall"]["n_recalled"] == N_RECORDS
    assert found["cost"]["search_gpu_seconds"] == 0.0 < found["cost"]["training_gpu_seconds"]
    folder = out / "adapter"
    card = json.loads((folder / "card.json").read_text())
    assert card["recall"] == found["recall"] and card["holds"]["n_records"] == N_RECORDS
    text = (folder / "README.md").read_text()
    head = ModelCard(text).data
    assert (head.base_model, head.library_name) == (TINY, "pmlray")
    assert "rank 8" in text and "by a rule of thumb, since no law of recall" in text
    assert card["adapter"]["method"] == "memft_ot" and "memft_ot trains only what" in text
    assert (folder / "not_recalled.jsonl").read_text() == ""
    assert read_adapter(folder).lora_rank == 8
    assert size_json(*options)["attempts"] == found["attempts"]
    assert trained == [7, 8]


def test_an_adapter_of_many_modules_is_sized_by_a_law_of_its_own_place(
    records: Path, tmp_path: Path, trained: list[int]
) -> None:
    place = Adapter(target_modules="all-linear", layers=(0, 3), alpha="2r")
    law, out = stored_law(tmp_path / "law", records, place), tmp_path / "out"
    options = ["--records", records, "--law", law, "--out", out, "--recall", "0.9"]
    options += ["--confidence", "0.6", "--max-rank", "8"]
    same = ["--placement", "all-linear", "--layers", "0,3", "--alpha", "2r"]
    found = size_json(*options, *same)
    own = found["adapter"]
    # Modules of the tiny model: 2,048 parameters a rank in two layers.
    assert trained == [7, 8] and own["parameters"] == 8 * 2048
    assert own["placement"] == "all-linear of layers 0, 3, alpha 2r" and own["layers"] == [0, 3]
    assert found["sized"]["parameters"] == 7 * 2048
    bits = found["holds"]["bits"]
    assert found["holds"]["bits_per_parameter"] == pytest.approx(bits / (8 * 2048))
    text = (out / "adapter" / "README.md").read_text()
    assert ModelCard(text).data.library_name == "peft" and "PeftModel.from_pretrained" in text
    assert "with 16384 parameters at all-linear of layers 0, 3, alpha 2r:" in text
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["layers_to_transform"] == [0, 3]
    other = [*options, "--placement", "all-linear"]
    assert "not at all-linear of all layers" in refused(SpecError, "size", "--model", TINY, *other)


def test_the_best_adapter_is_kept_where_no_rank_recalls_enough(
    records: Path, tmp_path: Path, trained: list[int]
) -> None:
    law, out = stored_law(tmp_path / "law", records), tmp_path / "out"
    options = ["--records", records, "--law", law, "--out", out, "--max-rank", "7"]
    options += ["--confidence", "0.6"]
    found = size_json(*options, "--recall", "0.9", code=1)
    assert trained == [7] and not found["recall"]["reached"]
    missed = [json.loads(x) for x in (out / "adapter/not_recalled.jsonl").read_text().splitlines()]
    assert [row["query"] for row in missed] == ["key 0:"]
    text = invoke("size", "--model", TINY, *options, "--recall", "0.9")
    assert text.exit_code == 1 and "even the largest rank recalls too little" in text.stdout
    # The terminal and the card tell the same of the law.
    told = f"law of {found['law']['n_obs']} runs, status UNDERDETERMINED: go by the recall"
    assert told in text.stdout and told in (out / "adapter" / "README.md").read_text()
    assert found["law"]["message"], "what is open is in the card's JSON"
    assert "one-sided bounds" in text.stdout and "at 60 % confidence" in text.stdout


def test_an_adapter_of_the_search_that_recalls_enough_is_not_trained_again(
    records: Path, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(run: SearchRun, announce: object) -> dict[str, Any]:
        store, prepared = FileStore(run.store), run.search
        (run.store / "search.json").write_text(prepared.spec.model_dump_json())
        for place, point in enumerate(prepared.spec.space.points()):
            planned = prepared.plan_run(point, "sft", 1, 0, "law")
            whole = point.seq_len == prepared.spec.space.seq_len[-1] and point.lora_rank >= 4
            store.put(by_law(planned, place, float(whole and point.train_steps == STEPS)))
            rank, placement = point.lora_rank, prepared.placement
            weights = at_site(placement, torch.zeros(128, rank), torch.zeros(rank, 64))
            save_adapter(store.adapters / planned.run_key, placement, weights, TINY)
        return {}

    monkeypatch.setattr(sizing_law, "run_search", search)
    out = tmp_path / "out"
    options = ["--records", records, "--out", out, "--steps", str(STEPS), "--max-rank", "16"]
    found = size_json(*options, "--recall", "0.8")
    assert found["sized"]["basis"] == "measured" and found["sized"]["lora_rank"] == 4
    (attempt,) = found["attempts"]
    assert attempt["in_search"] and attempt["lora_rank"] == 4
    assert found["adapter"]["method"] == "sft"
    assert "memft_ot" not in (out / "adapter" / "README.md").read_text()
    assert found["cost"]["training_gpu_seconds"] == 0.0 < found["cost"]["search_gpu_seconds"]
    assert not list((out / "training" / "observations").iterdir())
    assert read_adapter(out / "adapter").placement.modules == ("mlp.down_proj",)

    other = tmp_path / "other.jsonl"
    other.write_text(records.read_text().replace(" 10", " 11"))
    options[1] = other
    assert "choose another --out" in refused(StoreError, "size", "--model", TINY, *options)


def test_records_beyond_the_laws_reach_are_refused_before_training(
    records: Path, tmp_path: Path, trained: list[int]
) -> None:
    law = stored_law(tmp_path / "law", records)
    arguments = ["size", "--model", TINY, "--records", records, "--law", law, "--max-rank", "2"]
    said = refused(DataError, *arguments, "--out", tmp_path / "out")
    assert "the largest allowed is 2" in said and "--steps" in said
    assert trained == [] and not (tmp_path / "out").exists()
