"""Which search `pmlray size` goes on with, and what it says that is left to spend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pmlray.api.sizing.plan import SizePlan, SizeRequest, prepare_size
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config import ClusterProfile
from pmlray.config.bases.models import TINY
from pmlray.config.search_spec import Budget
from pmlray.errors import StoreError
from pmlray.memory import RecordSource
from pmlray.study.sizing.request import UNSETTLED, Wanted
from tests.fakes import observe


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    rows = [{"query": f"key {i}:", "target": f" {7 * i + 10}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def planned(*options: str | Path) -> dict[str, Any]:
    arguments = ["size", "--model", TINY, *map(str, options), "--dry-run", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def prepared(records: Path) -> SizePlan:
    """As the command line's defaults have it."""
    wanted, profile = Wanted(0.99, 0.9), ClusterProfile()
    return prepare_size(
        SizeRequest(
            RecordSource(records),
            TINY,
            None,
            "auto",
            wanted,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            profile,
        )
    )


def test_what_was_begun_goes_on_with_its_own_budget(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_STORE", str(tmp_path))
    options = ["--records", records, "--address", "elsewhere:6379"]
    fresh = planned(*options)
    assert fresh["rates"] == "guessed" and fresh["calibration_gpu_seconds"] == 0.0
    plan = prepared(records)
    assert plan.search.spec.budget == UNSETTLED and str(plan.out) == fresh["out"]
    budgeted = plan.search.spec.model_copy(update={"budget": Budget(gpu_seconds=8.0)})
    folder = plan.out
    (folder / "law").mkdir(parents=True)
    (folder / "law" / "search.json").write_text(budgeted.model_dump_json())
    begun = prepared(records)
    assert begun.out == folder and begun.search.spec == budgeted
    store = FileStore(folder / "law")
    point = budgeted.space.points()[0]
    run = begun.search.plan_run(point, "sft", 0, 0, "law")
    store.put(replace(observe(run, 0, 0, 0.0, 1e-3), gpu_seconds=0.25))
    left = planned(*options)
    assert left["rates"] == "law" and left["out"] == str(folder)
    spent = budgeted.budget.law_seconds - left["predicted_search_gpu_seconds"]
    assert spent == pytest.approx(0.25)
    # Other records are another sizing.
    other = tmp_path / "other.jsonl"
    other.write_text(records.read_text().replace(" 10", " 11"))
    assert prepared(other).search.spec.budget == UNSETTLED
    refused = ["size", "--model", TINY, "--records", str(other), "--out", str(folder), "--dry-run"]
    assert isinstance(CliRunner().invoke(app, refused).exception, StoreError)
    # One of before adapters were taught where an answer ends would answer another question.
    task = budgeted.task.model_copy(update={"end": False})
    without = budgeted.model_copy(update={"task": task}).model_dump()
    del without["task"]["end"]
    (folder / "law" / "search.json").write_text(json.dumps(without))
    refused[4] = str(records)
    assert "where an answer ends" in str(CliRunner().invoke(app, refused).exception)


def test_a_repeated_record_is_one_and_is_shown_as_often_if_asked(
    records: Path, tmp_path: Path
) -> None:
    path, lines = tmp_path / "dup.jsonl", records.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0]] * 70 + lines))
    elsewhere = ("--address", "ray://nowhere:1")
    single = planned("--records", records, *elsewhere)
    once = planned("--records", path, *elsewhere)
    assert (once["n_records"], once["n_duplicates"]) == (6, 70)
    same = ("n_records", "supervised_tokens", "seq_lens", "train_steps", "largest_rank")
    assert {k: once[k] for k in same} == {k: single[k] for k in same}
    kept = planned("--records", path, *elsewhere, "--keep-duplicates")
    assert kept["supervised_tokens"] == once["supervised_tokens"]
    # 40 epochs of 76 shown records, 8 a step.
    assert (once["train_steps"], kept["train_steps"]) == (200, 400)
    assert len({found["out"] for found in (once, kept)}) == 2
