"""`pmlray fit --optimisation-limited`: a store's runs that more steps would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pmlray.backends.store.file_store import FileStore
from pmlray.cli import app
from pmlray.errors import DataError
from tests.unit.study.search.test_fitted_runs import LIMITED, RUNS, spec_of

LEAVE_OUT = ("--optimisation-limited", "leave_out")


def store(folder: Path, limited: str, keys: set[str] | None = None) -> str:
    kept = FileStore(folder)
    for run in RUNS:
        if keys is None or run.run_key in keys:
            kept.put(run)
    (folder / "search.json").write_text(spec_of(limited).model_dump_json())
    return str(folder)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["fit", *arguments])


def fit(*arguments: str) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_store_decides_unless_it_is_asked_otherwise(tmp_path: Path) -> None:
    keeps, leaves = store(tmp_path / "a", "keep"), store(tmp_path / "b", "leave_out")
    found = {arguments: fit(*arguments) for arguments in ((keeps,), (leaves,), (keeps, *LEAVE_OUT))}
    counts = {key: (law["n_obs"], law["n_left_out"]) for key, law in found.items()}
    few = (len(RUNS) - len(LIMITED), len(LIMITED))
    assert counts == {(keeps,): (len(RUNS), 0), (leaves,): few, (keeps, *LEAVE_OUT): few}
    assert f"{len(LIMITED)} optimisation-limited runs were left out" in invoke(leaves).stdout
    assert fit(leaves, "--optimisation-limited", "keep") == found[keeps,]


def test_points_without_a_recipe_cannot_be_judged(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("rank,length,delta_loss_nats\n1,10,2.0\n")
    said = invoke(str(file), *LEAVE_OUT)
    assert said.exit_code == 2 and "no store of a search" in said.output


def test_a_store_of_limited_runs_alone_is_refused(tmp_path: Path) -> None:
    said = invoke(store(tmp_path, "leave_out", LIMITED)).exception
    with pytest.raises(DataError, match=r"all 4 runs .* measure with more steps"):
        raise said or AssertionError("it was fitted")
