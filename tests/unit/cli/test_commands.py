"""The commands that need no cluster, as a user runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmlray.cli import app, main
from pmlray.config.prepared_search import prepare_search
from pmlray.errors import SpecError
from pmlray.study.search.replay_table import write_table
from tests.searches import exhaustive

GOLDEN = Path(__file__).parents[2] / "golden" / "paper_fig2a_digitised.csv"
runner = CliRunner()


def run_json(*arguments: str) -> dict:
    result = runner.invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_fit_reproduces_the_papers_law() -> None:
    power = run_json("fit", str(GOLDEN), "--form", "power")
    # In the middle of the points; over all of them the paper's straight power law has 0.66 and 0.56
    # since they bend towards the ceiling, which here the drift of the exponents takes up.
    assert 0.7 < power["rank_exponent"] < 1.1 and 0.6 < power["len_exponent"] < 0.9
    rank_drift, _, len_drift, *_ = power["drift"]["coefs"]
    assert rank_drift < 0 and len_drift < 0
    assert power["r2"] >= 0.995
    ceiling = run_json("fit", str(GOLDEN), "--form", "ceiling", "--base-loss", "12.4")
    assert ceiling["r2"] >= 0.9985
    wanted = {"form", "coef", "rank_exponent", "len_exponent", "offset", "r2", "mape", "intervals",
              "n_obs", "n_censored", "status"}  # fmt: skip
    assert wanted <= set(power) and wanted <= set(ceiling)


def test_validate_and_plan(search_file: Path) -> None:
    found = run_json("validate", str(search_file))
    assert found["n_candidates"] == 40
    plan = run_json("plan", str(search_file))
    assert len(plan["first_pack"]) == 6
    assert all(row["gpu_seconds"] > 0 for row in plan["candidates"])


Pmlray = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pmlray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pmlray:
    """pmlray(*arguments) -> (exit code, stdout, stderr), as the console script runs it."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pmlray", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def test_a_budget_too_small_is_refused_with_the_number_needed(
    pmlray: Pmlray, search_file: Path
) -> None:
    code, out, err = pmlray("search", str(search_file), "--set", "budget.gpu_seconds=0.001")
    assert code == 2 and not out
    assert "too small for the first pack" in err and "needs at least" in err


def test_a_missing_model_says_how_to_pull_it(
    pmlray: Pmlray, search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "empty"))
    code, _, err = pmlray("search", str(search_file), "--set", "model.id=smollm2-135m")
    assert code == 2
    assert "pmlray models pull smollm2-135m" in err


def test_a_broken_record_names_file_and_line(pmlray: Pmlray, search_file: Path) -> None:
    records = search_file.parent / "facts.jsonl"
    records.write_text('{"query": "a", "target": "b"}\n{"query": "c"}\n')
    task = "task={kind: records, records: facts.jsonl}"
    code, out, err = pmlray("validate", str(search_file), "--set", task)
    assert code == 2 and not out
    assert "facts.jsonl, line 2" in err and "Traceback" not in err


def test_a_length_beyond_the_data_is_refused(pmlray: Pmlray, search_file: Path) -> None:
    records = search_file.parent / "facts.jsonl"
    records.write_text('{"query": "a", "target": "bcd"}\n')
    code, _, err = pmlray(
        "validate", str(search_file), "--set", "task={kind: records, records: facts.jsonl}"
    )
    assert code == 2
    assert "longer than the data" in err


def test_a_folder_that_is_no_store_gives_no_table(pmlray: Pmlray, tmp_path: Path) -> None:
    code, _, err = pmlray("table", str(tmp_path), str(tmp_path / "table.csv"))
    assert code == 3 and "is no store of a search" in err


def test_the_gp_rule_without_torch_is_refused_before_anything_starts(
    search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = prepare_search(search_file)
    table, store = tmp_path / "table.csv", tmp_path / "store"
    write_table(table, exhaustive(search, tmp_path / "grid").observations(), ["made up"])
    monkeypatch.setattr("pmlray.api.search_run.find_spec", lambda name: None)
    result = runner.invoke(
        app,
        ["search", str(search_file), "--set", "design.acquisition=gp", "--replay", str(table),
         "--store", str(store)],
    )  # fmt: skip
    assert isinstance(result.exception, SpecError) and "pip install torch" in str(result.exception)
    assert not store.exists()
