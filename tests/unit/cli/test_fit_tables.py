"""`pmlray fit` on tables that people bring: what cannot be meant is refused with its line and its
cure, and what is not taken as it stands is named in a note."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pmlray.cli import app, main
from pmlray.errors import DataError
from pmlray.law import PowerLaw, read_law_data
from pmlray.study.search.replay_table import COLUMNS, OPTIONAL_COLUMNS, write_table
from pmlray.types import DesignPoint
from tests.unit.study.conftest import make_observation

LAW = PowerLaw(20.0, 0.4, 0.5, -0.1, 0.3, 100.0)
GRID = [(r, n, t) for r in (1, 2, 4, 8) for n in (64, 128, 256) for t in (50, 100, 200)]
SHIPPED = Path(__file__).parents[3] / "searches" / "tables"
CASES = Path(__file__).parents[4] / "shared" / "cases" / "fit"

Write = Callable[..., Path]


def delta(r: float, n: float, t: float) -> str:
    return f"{float(LAW.predict(r, n, t)):.5f}"


# The law at every point of GRID: rank, length, steps, delta_loss.
ROWS = [f"{r},{n},{t},{delta(r, n, t)}" for r, n, t in GRID]
HEADER = "rank,length,steps,delta_loss_nats"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(header: str, *rows: str) -> Path:
        path = tmp_path / "points.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a table is refused with: exit code 2 and one line on stderr, and the same in Python."""

    def run(file: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pmlray", "fit", str(file), *arguments, "--json"])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 2 and said.out == "" and said.err.count("\n") == 1
        base_loss = float(arguments[1]) if arguments else None
        with pytest.raises(DataError) as caught:
            read_law_data(file, base_loss)
        assert said.err == f"error: {caught.value}\n"
        return said.err

    return run


def fit(file: Path) -> dict[str, Any]:
    """The law in JSON, once its notes are found to be the same on stderr, in text and in Python."""
    done = CliRunner().invoke(app, ["fit", str(file), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    told = [f"note: {note}" for note in found["notes"]]
    assert done.stderr.splitlines() == told
    text = CliRunner().invoke(app, ["fit", str(file)], catch_exceptions=False)
    assert text.stderr.splitlines() == told and found["headline"] in text.stdout
    assert read_law_data(file).notes == tuple(found["notes"])
    return found


@pytest.mark.parametrize(
    "row",
    ["1,64,50,2,1213", "1,1,024,50,2.1", '"1",64,50,2,1213', "1,64,50,2.1,,0.5", "1,64,50,2.1,,,"],
)
@pytest.mark.parametrize("end", ["", ",", ",,"])
def test_a_row_wider_than_the_header_is_refused(
    write: Write, refused: Callable[..., str], row: str, end: str
) -> None:
    rows = [f"{good}{end}" for good in ROWS]
    said = refused(write(HEADER + end, *rows[:5], row, *rows[5:]))
    assert re.search(r"line 7: \d cells under the 4 columns of the header", said)
    assert "decimal point" in said and "thousands separators" in said


@pytest.mark.parametrize("end", ["", ",", ",,"])
def test_an_empty_name_has_no_cell_under_it(write: Write, end: str) -> None:
    # A spreadsheet ends every line alike.
    assert fit(write(HEADER + end, *(f"{row}{end}" for row in ROWS)))["n_obs"] == len(GRID)


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("rank,length,steps,delta_loss_nats,rank", r"columns 1 \(rank\) and 5 \(rank\)"),
        ("rank,length,steps,delta_loss_nats,lora_rank", r"columns 1 \(rank\) and 5 \(lora_rank\)"),
        ("rank,seq_len,steps,delta_loss_nats,length", r"columns 2 \(seq_len\) and 5 \(length\)"),
        ("rank,length,train_steps,delta_loss,steps", r"columns 3 \(train_steps\) and 5 \(steps\)"),
        (
            "rank,length,seed,delta_loss,delta_loss_nats",
            r"columns 4 .* and 5 .* are both the delta",
        ),
    ],
)
def test_a_column_given_twice_is_refused(
    write: Write, refused: Callable[..., str], header: str, places: str
) -> None:
    said = refused(write("# measured on Monday\n" + header, *(f"{row},99" for row in ROWS)))
    assert re.search(f"line 2: {places}", said) and "take out the one" in said


def test_a_loss_cannot_fall_by_more_than_it_was(
    write: Write, refused: Callable[..., str], tmp_path: Path
) -> None:
    above = "above the base loss 2.5 nats, and a loss cannot fall by more than it was: mend"
    said = refused(write("rank,length,delta_loss,base_loss", "1,64,2.4,2.5", "2,64,2.6,2.5"))
    assert f"line 3: delta_loss 2.6 is {above}" in said
    said = refused(write("rank,length,delta_loss", "1,64,2.5", "2,64,2.6"), "--base-loss", "2.5")
    assert f"line 3: delta_loss 2.6 is {above}" in said
    said = refused(write("rank,length,delta_loss,final_loss", "1,64,2.4,0.0", "1,64,2.4,-0.1"))
    assert "line 3: final_loss -0.1 nats is below zero" in said
    # What float32 leaves of a loss of zero, in a table of seven digits.
    exact = write("rank,length,delta_loss,base_loss,final_loss", "1,64,14.10001,14.1,-1e-05")
    assert len(read_law_data(exact)) == 1
    run = make_observation(DesignPoint(1, 64, 200), 0, 0, np.random.default_rng(0)).to_json()
    stored = tmp_path / "runs.jsonl"
    stored.write_text(json.dumps(run) + "\n" + json.dumps(run | {"final_loss": -0.5}) + "\n")
    assert "line 2: delta_loss" in (said := refused(stored)) and "above the base loss" in said


def test_names_of_stored_observations_are_read_the_same(write: Write) -> None:
    rest = "12.4,{},{},{}"
    rows = [
        f"{row},{rest.format(12.4 - float(row.rsplit(',')[-1]), i % 2, i % 3)}"
        for i, row in enumerate(ROWS)
    ]
    own = read_law_data(write(HEADER + ",base_loss_nats,final_loss_nats,sequence,seed", *rows))
    file = write(
        "lora_rank,seq_len,train_steps,delta_loss,base_loss,final_loss,sequence_id,seed", *rows
    )
    other = read_law_data(file)
    for name in ("lora_rank", "seq_len", "train_steps", "delta_loss", "base_loss", "final_loss"):
        np.testing.assert_array_equal(getattr(own, name), getattr(other, name))
    np.testing.assert_array_equal(own.cluster, other.cluster)
    assert np.unique(own.cluster).size == 6 and own.notes == other.notes == ()


def test_train_steps_are_the_steps_and_supervised_tokens_the_length(write: Write) -> None:
    found = fit(write("lora_rank,supervised_tokens,train_steps,delta_loss", *ROWS))
    assert found["fits_budget"] and found["notes"] == []
    low, high = found["intervals"]["budget_exponent"]
    assert low < LAW.budget_exponent < high < low + 0.3
    assert found == fit(write(HEADER, *ROWS))
    # Where there are both, l is what was supervised, and no length but that may be empty.
    both = read_law_data(write("rank,length,supervised_tokens,delta_loss", "1,64,60,2", "1,9,,2"))
    assert both.seq_len.tolist() == [60, 9]
    with pytest.raises(DataError, match=r"line 2: .*supervised_tokens is ''"):
        read_law_data(write("rank,supervised_tokens,delta_loss", "1,,2"))


def test_columns_that_are_not_used_are_named(write: Write) -> None:
    plain = fit(write(HEADER, *ROWS))
    rows = [f"{i},{row},a,7" for i, row in enumerate(ROWS)]
    found = fit(write(f",{HEADER},note,Seed", *rows))
    [note] = found["notes"]
    assert "points.csv, line 1: not used: column number 1 (without a name), 'note', 'Seed';" in note
    assert "steps" in note and "rename" in note
    assert found | {"notes": []} == plain and plain["notes"] == []


def test_what_pmlray_table_writes_is_not_foreign(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = tmp_path / "own.csv"
    write_table(table, [make_observation(DesignPoint(*p), 0, 0, rng) for p in GRID], ("a search",))
    assert {*COLUMNS, *OPTIONAL_COLUMNS} <= set(table.read_text().splitlines()[1].split(","))
    shipped = sorted(SHIPPED.glob("*.csv"))
    assert len(shipped) == 3
    for file in (table, *shipped):
        assert read_law_data(file).notes == ()


def test_a_repeat_of_a_run_is_no_new_evidence(write: Write) -> None:
    header, rows = HEADER + ",sequence,seed", [f"{row},0,0" for row in ROWS]
    once = fit(write(header, *rows))
    # A run is the same run however its numbers are written, and whatever else a row says.
    again = rows[0].replace("1,64,50,", "1.0,64,50,")
    found = fit(write(header, *rows, again, rows[1], rows[1]))
    [note] = found["notes"]
    assert f"3 of {len(GRID) + 3} rows are repeats (line {len(GRID) + 2} repeats line 2)" in note
    assert "count once" in note and "sequence or seed" in note
    assert found | {"notes": []} == once
    data = read_law_data(write(header + ",gpu_seconds", f"{rows[0]},1.5", f"{rows[0]},1.6"))
    assert len(data) == 1 and len(data.notes) == 1


def test_without_a_seed_only_rows_alike_in_everything_are_repeats(write: Write) -> None:
    once = fit(write(HEADER, *ROWS))
    found = fit(write(HEADER, *ROWS, ROWS[3], ROWS[3]))
    [note] = found["notes"]
    assert f"2 of {len(GRID) + 2} rows are repeats (line {len(GRID) + 2} repeats line 5)" in note
    assert found | {"notes": []} == once
    # Replicates share their point, and differ in what was measured or in what else a row says.
    header = "rank,length,delta_loss,run"
    data = read_law_data(write(header, "1,64,2.0,a", "1,64,2.1,a", "1,64,2.0,b", "1,64,2.0,a"))
    assert data.delta_loss.tolist() == [2.0, 2.1, 2.0] and "1 of 4 rows" in data.notes[1]
    # What pandas numbers rows in makes no run of a row; an unknown seed is no seed.
    data = read_law_data(write(",rank,length,delta_loss", "0,1,64,2.0", "1,1,64,2.0"))
    assert len(data) == 1
    data = read_law_data(write("rank,length,delta_loss,seed", "1,64,2.0,", "1,64,2.0,", "1,64,3,"))
    assert len(data) == 2 and np.unique(data.cluster).size == 2


@pytest.mark.parametrize(
    ("row", "differs"),
    [
        ("1,64,50,2.50001,12.4,9.9,60,0,0", "delta_loss, 2.50001 and 2.5 nats"),
        ("1,64,50,2.5,12.41,9.9,60,0,0", "base_loss, 12.41 and 12.4 nats"),
        ("1,64,50,2.5,12.4,,60,0,0", "final_loss, none and 9.9 nats"),
        ("1,64,50,2.5,12.4,9.9,61,0,0", "supervised_tokens, 61 and 60:"),
    ],
)
def test_a_run_that_contradicts_itself_is_refused(
    write: Write, refused: Callable[..., str], row: str, differs: str
) -> None:
    header = HEADER + ",base_loss_nats,final_loss_nats,supervised_tokens,sequence,seed"
    first = "1,64,50,2.5,12.4,9.9,60,0,0"
    said = refused(write(header, first, first.replace("1,64", "2,64"), row))
    assert f"line 4: the run of line 2 with another {differs}" in said
    assert "keep the one to be believed" in said


def test_stored_runs_that_repeat_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    runs = [make_observation(DesignPoint(r, n, 200), 0, 0, rng) for r, n, t in GRID if t == 50]
    lines = [json.dumps(o.to_json()) for o in runs]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(lines))
    once = fit(file)
    file.write_text("\n".join([*lines, lines[2], lines[4]]))
    found = fit(file)
    [note] = found["notes"]
    assert f"2 of 14 observations are repeats (the first is of run_key {runs[2].run_key})" in note
    assert found | {"notes": []} == once and once["notes"] == []
    data = read_law_data(file)
    assert data.subset(np.arange(3)).notes == data.notes and len(data.subset(np.arange(3))) == 3


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_and_units_are_refused_with_their_cure(
    write: Write, refused: Callable[..., str], mark: str
) -> None:
    said = refused(write(HEADER.replace(",", mark), ROWS[0].replace(",", mark)))
    assert "line 1: no column rank" in said and f"not by {mark!r}" in said
    said = refused(write("\ufeff" + HEADER, *ROWS[:2], "1,64,50%,2.1"))
    assert "line 4: '1,64,50%,2.1'; expected numbers" in said and "steps is '50%'" in said
    said = refused(write("rank,length,train_steps,delta_loss", '1,64,50,"2,1213"'))
    assert "line 2" in said and "delta_loss is '2,1213'" in said and "decimal point" in said


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not in this checkout")
def test_the_shared_cases(refused: Callable[..., str]) -> None:
    assert "line 2: 4 cells" in refused(CASES / "comma_dec.csv")
    assert "(rank)" in refused(CASES / "dup_column.csv")
    assert "above the base loss" in refused(CASES / "below_zero.csv")
    assert fit(CASES / "train_steps.csv")["fits_budget"]
    assert fit(CASES / "six_points.csv")["notes"] == []
