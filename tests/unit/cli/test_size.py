"""`pmlray size` and `pmlray recall` as a user calls them, without training anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config.adapters.adapter_spec import AdapterPlace
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Model, Probe
from pmlray.errors import DataError, ModelError, PmlrayError, SpecError, StoreError
from pmlray.law import CeilingLaw
from pmlray.memory import RecordSource, read_rows
from pmlray.study.sizing.request import RecordSet, search_spec
from pmlray.types import Observation, PlannedRun, Recall
from tests.fakes import observe

runner = CliRunner()
N_RECORDS, STEPS = 6, 150
# It promises that rank 5 holds the records; one run may need 6.
LAW = CeilingLaw(18.2, 0.5, 0.4, 0.0, 5.0, 7.5)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    rows = [{"query": f"key {i}:", "target": f" {7 * i + 10}"} for i in range(N_RECORDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(*arguments: str | Path) -> Result:
    return runner.invoke(app, [str(a) for a in arguments])


def refused(kind: type[PmlrayError], *arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def size_json(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    result = invoke("size", "--model", TINY, *arguments, "--json")
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_dry_run_says_what_would_be_done_and_starts_nothing(
    records: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # What a cluster elsewhere takes is not tried here.
    dry = ["--records", records, "--dry-run", "--address", "elsewhere:6379"]
    plan = size_json(*dry, "--out", out, "--recall", "0.95")
    assert plan["n_records"] == N_RECORDS and plan["recall"] == 0.95 and plan["law"] is None
    assert plan["seq_lens"][-1] == plan["supervised_tokens"]
    assert plan["lora_ranks"][-1] < plan["largest_rank"]
    assert plan["predicted_search_gpu_seconds"] > 0 and plan["predicted_training_gpu_seconds"] > 0
    assert not out.exists()
    text = invoke("size", "--model", TINY, *dry).stdout
    assert "recall of 0.99 at 90 % confidence" in text and "greedy decoding" in text
    assert "guessed from the model's size" in text and "second rank" in text
    # Forty epochs, or as many steps as the fewest, are no few epochs; a quarter of them are.
    assert plan["epochs"] >= 40 and f"({plan['epochs']:.3g} epochs)" in text
    assert "few epochs" not in text
    steps = str(round(plan["train_steps"] * 10 / plan["epochs"]))
    few = size_json(*dry, "--out", out, "--steps", steps)
    assert few["epochs"] == pytest.approx(10, rel=0.1)
    assert "few epochs" in invoke("size", "--model", TINY, *dry, "--steps", steps).stdout


@pytest.mark.parametrize(
    ("options", "said", "per_rank", "wanted"),
    [
        ([], "down_proj of layer 2", 192, {"placement": "down_proj", "layer": 2}),
        (["--placement", "mlp"], "mlp of layer 2", 128, {"placement": "mlp", "layer": 2}),
        (
            ["--placement", "mlp_block", "--layer", "1"],
            *("mlp of layer 1", 128, {"placement": "mlp", "layer": 1}),
        ),
        (
            ["--placement", "down_proj", "--layers", "1,3"],
            *("down_proj of layers 1, 3", 384, {"layers": [1, 3], "modules": ["mlp.down_proj"]}),
        ),
        (
            ["--placement", "mlp", "--layers", "all", "--alpha", "16"],
            *("mlp_block of all layers, alpha 16", 512, {"modules": ["mlp"], "alpha": 16.0}),
        ),
        (
            ["--placement", "all-linear", "--alpha", "2r", "--rslora"],
            *("all-linear of all layers, alpha 2r, rsLoRA", 4096),
            {"layers": [0, 1, 2, 3], "alpha_per_rank": 2.0, "use_rslora": True},
        ),
        (
            ["--placement", "q_proj,v_proj", "--layers", "2-3"],
            *("q_proj, v_proj of layers 2 to 3", 448),
            {"layers": [2, 3], "modules": ["self_attn.q_proj", "self_attn.v_proj"]},
        ),
        (["--layer", "0", "--rslora"], "down_proj of layer 0, rsLoRA", 192, {"layers": [0]}),
    ],
)
def test_the_options_say_where_the_adapter_sits(
    records: Path,
    tmp_path: Path,
    options: list[str],
    said: str,
    per_rank: int,
    wanted: dict[str, Any],
) -> None:
    dry = ["--records", records, "--dry-run", "--address", "elsewhere:6379", *options]
    plan = size_json(*dry, "--out", tmp_path / "out")
    assert (plan["placement"], plan["params_per_rank"]) == (said, per_rank)
    assert wanted.items() <= plan["probe" if "placement" in wanted else "adapter"].items()
    text = invoke("size", "--model", TINY, *dry).stdout
    assert f"at {said} of {TINY}" in text


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        (["--recall", "0"], SpecError, "--recall is 0; it is a share"),
        (["--recall", "1.5"], SpecError, "--recall is 1.5"),
        (["--confidence", "1"], SpecError, "--confidence is 1"),
        (["--layer", "4"], SpecError, "--layer is 4, but tiny-random-llama has layers 0 to 3"),
        (["--layer", "-1"], SpecError, "layers are counted from 0"),
        (["--layers", "1,9"], SpecError, "--layers names layer 9, but tiny-random-llama has"),
        (["--layers", "3-1"], SpecError, "--layers goes from 3 down to 1"),
        (["--layers", "upper"], SpecError, "--layers is 'upper'; it is `all`"),
        (["--layer", "1", "--layers", "2"], SpecError, "give one of them"),
        (["--placement", "c_attn"], SpecError, "--placement: tiny-random-llama's layers have no"),
        (["--alpha", "0"], SpecError, "--alpha is a number above 0, or a multiple of the rank"),
        (["--alpha", "0r"], SpecError, "--alpha is a number above 0"),
        (["--alpha", "two"], SpecError, "such as 2r (got 'two')"),
        (["--placement", "all-linear", "--max-rank", "33"], SpecError, "k_proj maps 64 values to"),
        (["--max-rank", "65"], SpecError, "mlp.down_proj maps 128 values to 64"),
        (["--model", "no-such-model"], ModelError, "neither a folder here, nor a hub id"),
        (["--model", "owner/model"], ModelError, "give the commit's hash"),
        (["--records", "missing.jsonl"], DataError, "missing.jsonl: cannot be read"),
        (["--law", "missing"], StoreError, "no store of a search"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    records: Path, tmp_path: Path, options: list[str], kind: type[PmlrayError], says: str
) -> None:
    out = tmp_path / "out"
    arguments = ["size", "--model", TINY, "--records", records, "--out", out, *options]
    assert says in refused(kind, *arguments)
    assert not out.exists()


def test_records_that_cannot_work_are_named(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"query": "a", "target": "b"}\n{"query": "c"}\n')
    size = ["size", "--model", TINY, "--records", path]
    assert "facts.jsonl, line 2" in refused(DataError, *size)
    path.write_text(json.dumps({"query": "a", "target": "b " * 1100}))
    assert "line 1: the record needs" in refused(DataError, *size)
    path.write_text(
        "".join(json.dumps({"query": f"q{i}", "target": "b " * 300}) + "\n" for i in range(2))
    )
    assert "--max-rank" in refused(DataError, *size, "--max-rank", "1")


MLP = Probe(layer=2)


def record_set(records: Path) -> RecordSet:
    """The records with made-up sizes: the tiny model's tokens are single characters here."""
    pairs = tuple((row.query, row.target) for row in read_rows(RecordSource(records)))
    return RecordSet(pairs, (3,) * len(pairs), (6,) * len(pairs))


def stored_law(folder: Path, records: Path, place: AdapterPlace = MLP, model: str = TINY) -> Path:
    """A store whose runs follow LAW, on subsets of the records."""
    base = Model(id=model, dtype="float32")
    spec = search_spec(record_set(records), base, place, 32, STEPS, "plain")
    identity = resolve_model(model, None).identity
    store = FileStore(folder)
    (folder / "search.json").write_text(spec.model_dump_json())
    subsets = spec.space.seq_len[:-1]
    points = [p for p in spec.space.points() if p.train_steps == STEPS and p.seq_len in subsets]
    for place, point in enumerate(points):
        o = by_law(PlannedRun(point, "sft", 0, 0, "law", f"{place:016x}"), place, 0.0)
        store.put(replace(o, provenance={**o.provenance, "model": identity}))
    return folder


def by_law(run: PlannedRun, place: int, exact: float) -> Observation:
    """What a run that follows LAW measures."""
    point = run.point
    delta = float(LAW.predict(point.lora_rank, point.seq_len, point.train_steps))
    return replace(
        observe(run, 0, place, 0.0, 1e-4),
        base_loss=7.5,
        final_loss=7.5 - delta,
        recall=Recall(exact, exact, exact, 0),
        provenance={
            "model": TINY,
            "gpu_seconds_unit": "CPU core",
            "versions": {},
            "device_name": "x",
        },
    )


@pytest.mark.parametrize(
    ("changed", "options", "says"),
    [
        ({}, ["--layer", "1"], "measured at mlp of layer 2, not at mlp of layer 1"),
        ({}, ["--placement", "all-linear"], "not at all-linear of all layers; leave the options"),
        ({}, ["--layers", "1-2"], "measured at mlp of layer 2, not at mlp_block of layers 1 to 2"),
        ({}, ["--alpha", "2r"], "not at mlp_block of layer 2, alpha 2r"),
        ({}, ["--dtype", "bfloat16"], "measured with --dtype float32"),
        ({}, ["--prompt-format", "chat"], "measured with --prompt-format plain"),
        ({}, ["--steps", "7"], "not at 7; use one of those"),
        ({"task": "phonebook"}, [], "its search memorised phonebook"),
        ({"model": "another"}, [], "its law is of another, not of tiny-random-llama"),
    ],
)
def test_a_law_of_something_else_is_refused(
    records: Path, tmp_path: Path, changed: dict[str, str], options: list[str], says: str
) -> None:
    store = stored_law(tmp_path / "law", records)
    spec = json.loads((store / "search.json").read_text())
    if "task" in changed:
        spec["task"] = {"kind": changed["task"]}
    if "model" in changed:
        spec["model"]["id"] = changed["model"]
        for path in (store / "observations").iterdir():
            row = json.loads(path.read_text()) | {"provenance": {"model": changed["model"]}}
            path.write_text(json.dumps(row))
    (store / "search.json").write_text(json.dumps(spec))
    arguments = ["size", "--model", TINY, "--records", records, "--law", store, *options]
    assert says in refused(SpecError, *arguments)
