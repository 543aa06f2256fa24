"""`from pmlray import ...`: the same work as the command line's, without its frameworks' weight."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pmlray
from pmlray import Search, fit_law, law_data, size
from pmlray.api.search_run import SearchRun
from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.config import load_search
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.stored_files import SEARCH_FILE
from pmlray.engine import calibrate_apart
from pmlray.errors import ModelError, SpecError, StoreError
from pmlray.law import LawSummary
from pmlray.live_packs import Calibration
from pmlray.study.search.progress import Progress
from pmlray.types import DesignPoint, Pack
from tests.fakes import TRUE_LAW, SyntheticRunner

MakeSearch = Callable[..., PreparedSearch]


def test_every_public_name_is_there() -> None:
    assert {"Search", "fit_law", "LawSampler", "size"} <= set(pmlray.__all__) <= set(dir(pmlray))
    for name in pmlray.__all__:
        assert getattr(pmlray, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Serach'"):
        pmlray.Serach  # noqa: B018


def test_the_plan_is_that_of_the_command_line(search_file: Path, tmp_path: Path) -> None:
    plan = Search.load(search_file, store=tmp_path / "store").plan()
    shown = CliRunner().invoke(app, ["plan", str(search_file), "--json"])
    assert json.loads(shown.stdout) == plan.to_json()
    dry = CliRunner().invoke(app, ["search", str(search_file), "--dry-run", "--json"])
    assert json.loads(dry.stdout).items() >= plan.to_json().items()
    assert not (tmp_path / "store").exists()


def test_a_spec_made_in_python_is_the_file_s_search(search_file: Path, tmp_path: Path) -> None:
    from_file = Search.load(search_file, store=tmp_path, overrides=["name=other"])
    spec = load_search(search_file, ["name=other"])
    from_spec = Search.load(spec, store=tmp_path)
    assert from_spec == from_file and from_spec.search_id.startswith("other-")
    with pytest.raises(SpecError, match="layers 0 to 3"):
        Search.load(load_search(search_file, ["probe.layer=7"]))


def test_a_run_leaves_a_program_its_own_signals(
    search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_search(run: SearchRun, announce: Callable[[Progress], None]) -> dict[str, Any]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        return {"store": run.store, "replay": run.replay, "announce": announce}

    monkeypatch.setattr("pmlray.api.search_run.run_search", run_search)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    said: list[Progress] = []
    search = Search.load(search_file, store=tmp_path / "store")
    found = search.run(replay="table.csv", announce=said.append)
    assert found == {
        "store": tmp_path / "store", "replay": Path("table.csv"), "announce": said.append,
    }  # fmt: skip
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_law_and_observations_come_from_the_store(search_file: Path, tmp_path: Path) -> None:
    search = Search.load(search_file, store=tmp_path / "store")
    with pytest.raises(StoreError, match="is no store of a search"):
        search.observations()
    store = FileStore(search.store)
    (search.store / SEARCH_FILE).write_text(search.spec.model_dump_json())
    assert search.observations() == () and search.law() is None
    prepared = search.prepared
    runs = tuple(
        prepared.plan_run(point, "sft", sequence, 0, "law")
        for point in prepared.spec.space.points()
        for sequence in (0, 1)
    )
    done = SyntheticRunner(store, noise=0.0).run(Pack(0, runs))
    assert search.observations() == done.observations
    law = search.law()
    assert law is not None
    (target,) = law.targets
    at = (target.point.lora_rank, target.point.seq_len, target.point.train_steps)
    assert target.delta_loss == pytest.approx(float(TRUE_LAW.predict(*at)), rel=0.02)
    fit = fit_law(law_data(done.observations), "ceiling")
    assert isinstance(fit, LawSummary)
    low, high = fit.intervals["rank_exponent"]
    assert low < TRUE_LAW.rank_exponent < high < low + 0.5


def test_size_says_what_it_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tmp_path / "facts.jsonl"
    lines = [json.dumps({"query": f"{i}:", "target": f"{i} is {i * i}"}) for i in range(40)]
    records.write_text("\n".join(lines))
    timed = Calibration(((DesignPoint(8, 100, 50), 10),), 1.0, 1.5)
    monkeypatch.setattr(calibrate_apart, "time_steps_apart", lambda *given: timed)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wanted = {"steps": 50, "placement": "mlp", "layer": 2, "dtype": "float32", "recall": 0.9}
    planned = size(records, "tiny-random-llama", out=tmp_path / "out", dry_run=True, **wanted)
    found = planned.to_json()
    options = [part for k, v in wanted.items() for part in (f"--{k}", str(v))]
    shown = CliRunner().invoke(
        app,
        ["size", "--records", str(records), "--model", "tiny-random-llama",
         "--out", str(tmp_path / "out"), "--dry-run", "--json", *options],
    )  # fmt: skip
    assert json.loads(shown.stdout) == found
    # 50 steps at a tenth of a second, and half of a step for each of 8 looks at 5 batches.
    assert found["predicted_training_gpu_seconds"] == pytest.approx(5.0 + 8 * 5 * 0.05)
    assert found["rates"] == "calibrated" and found["calibration_gpu_seconds"] == 1.5
    assert found["n_records"] == 40 and found["train_steps"] == 50 and found["recall"] == 0.9
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="pmlray models pull smollm2-135m"):
        size(records, "smollm2-135m", dry_run=True)
