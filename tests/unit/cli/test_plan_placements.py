"""`pmlray plan` of a search over several placements, and `fit` of its one store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config.adapters.placement_facts import placement_facts
from pmlray.config.prepared_search import PreparedSearch
from tests.fakes import observe

PLACES = ("down: {target_modules: down_proj, layers: [2]}", "all: {target_modules: all-linear}")
# What a parameter of each stores, beside one of down_proj's.
WORTHS = {"down": 1.0, "all": 0.2}


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_plan_and_fit_name_the_choice_once_there_are_runs(
    make_placed_search: Callable[..., PreparedSearch],
    search_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PMLRAY_STORE", str(tmp_path))
    search = make_placed_search(*PLACES)
    text = run("plan", search_file)
    assert "down: down_proj of layer 2, ranks 1, 4, 192 parameters a rank" in text
    assert "all: all-linear of all layers, ranks 1, 4, 4096 parameters a rank" in text
    assert "is told once each has runs" in text and "fewest parameters for" not in text
    folder = tmp_path / search.spec.search_id
    store = FileStore(folder)
    (folder / "search.json").write_text(search.spec.model_dump_json())
    for place, point in enumerate(search.spec.space.points()):
        for sequence in search.spec.sequences:
            planned = search.plan_run(point, "sft", sequence, 0, "law")
            per_rank = search.params_per_rank_of(point) / 192 * WORTHS[str(point.placement)]
            delta = 12.0 * (1.0 - 2.0 ** -(point.lora_rank * per_rank * 2 / point.seq_len))
            o = observe(planned, 0, place, 0.0, 1e-3)
            told = {**o.provenance, "placement": placement_facts(search, point)}
            loss = max(12.0 - delta + 0.02 * sequence, 1e-3)
            store.put(replace(o, base_loss=12.0, final_loss=loss, provenance=told))
    found: dict[str, Any] = json.loads(run("plan", search_file, "--json"))
    assert found["choices"][0]["placements"][0]["placement"] == "down"
    told = "fewest parameters for delta_loss 11.31 at seq_len=16 train_steps=10: down, then all"
    assert told in run("plan", search_file)
    # Without a target too, at the largest length and steps measured.
    assert told in run("fit", folder)
