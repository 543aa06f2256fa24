"""The benchmark of placements: what it trains, and what it reads off a table of known worths."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.errors import DataError
from pmlray.law import read_law_data
from scripts.bench.placements.findings import findings
from scripts.bench.placements.orders import more_steps, orders, orders_tuned_early, rates
from scripts.bench.placements.plan import (
    PACK_TOKENS,
    PLACES,
    STEPS,
    TEXTS,
    Run,
    next_pack,
    rates_left,
)
from scripts.bench.placements.selection import over_texts, tuned_rows, tuning_rows
from scripts.bench.placements.table import (
    CURVE_STEPS,
    Row,
    append_rows,
    read_notes,
    read_rows,
    write_rows,
)
from scripts.bench.placements.words import describe
from scripts.bench.placements.worths import REFERENCE, bits_by_placement, law_findings

BASE, BITS = 13.5, 0.2
PER_RANK = {"down_proj": 2112, "mlp_block": 1152, "gate_proj": 2112, "q_proj": 1152,
            "v_proj": 768, "o_proj": 1152}  # fmt: skip
WORTH = {place.name: 0.7 + 0.1 * i for i, place in enumerate(PLACES)}
WORTH = {name: worth / WORTH[REFERENCE] for name, worth in WORTH.items()}
# What is worth most learns slowest, and its best rate lies beyond the grid.
SPEED = {name: 1.0 / worth**4 for name, worth in WORTH.items()}
BEST = {place.name: 0.81 if i == 7 else (0.03, 0.09)[i % 2] for i, place in enumerate(PLACES)}


def trained(run: Run) -> Row:
    """A run whose bits a parameter are its placement's, less away from its best rate."""
    name = run.place.name
    params = run.cell.rank * len(run.place.layers) * sum(PER_RANK[m] for m in run.place.modules)
    off = math.exp(-0.05 * math.log(run.rate / BEST[name]) ** 2)
    of_text = (0.98, 1.0, 1.02)[run.cell.text]
    # With twice the steps a tenth more is stored.
    bits = BITS * WORTH[name] * off * of_text * (1.1 if run.cell.steps > STEPS else 1.0)
    delta = bits * params * math.log(2) / run.cell.length
    curve = tuple(
        BASE - delta * (1 - math.exp(-SPEED[name] * run.rate / BEST[name] * step / 50))
        for step in CURVE_STEPS
    )
    return Row(
        name, params, run.cell.rank, run.cell.length, run.cell.steps, run.cell.text, 0, run.rate,
        BASE, BASE - delta, 0.5, 10, 60.0, "converged", 0.1, 0.5, curve, 1, "2026-11-30",
    )  # fmt: skip


def whole_table() -> list[Row]:
    """All runs that the plan asks for, pack by pack."""
    rows: list[Row] = []
    while pack := next_pack([row.measured for row in rows]):
        assert len({(run.place, run.cell.text) for run in pack}) == 1
        assert sum(run.cell.length for run in pack) <= PACK_TOKENS
        rows += map(trained, pack)
    return rows


ROWS = whole_table()
TUNED = tuned_rows(ROWS)


def test_every_placement_is_tuned_alike_and_measured_everywhere_text_by_text() -> None:
    assert len(PLACES) >= 8
    assert len(TUNED) == len(PLACES) * 2 * 2 * len(TEXTS)
    assert len({(r.placement, r.rank, r.length, r.sequence) for r in TUNED}) == len(TUNED)
    assert {row.placement: row.learning_rate for row in TUNED} == BEST
    # Only where the best rate was at the grid's edge, the grid went on.
    n_rates = {found["placement"]: len(found["final_loss"]) for found in rates(ROWS)}
    assert n_rates == {name: 6 if best == 0.81 else 4 for name, best in BEST.items()}
    assert [row.sequence for row in ROWS] == sorted(row.sequence for row in ROWS)


def test_a_grid_goes_on_beyond_its_edge_and_past_what_diverged() -> None:
    assert rates_left({}, (0.1, 0.3)) == [0.1, 0.3]
    assert rates_left({0.1: 2.0, 0.3: 1.0}, (0.1, 0.3)) == [0.9]
    assert rates_left({0.1: 1.0, 0.3: 2.0}, (0.1, 0.3)) == [0.0333333]
    assert rates_left({0.1: 2.0, 0.3: 1.0, 0.9: math.inf}, (0.1, 0.3)) == []


def test_bits_and_worths_are_those_that_made_the_table() -> None:
    found = bits_by_placement(TUNED)
    for name, worth in WORTH.items():
        assert found[name]["beside_reference"]["value"] == pytest.approx(worth)
        assert len(found[name]["cells"]) == 4
        for cell in found[name]["cells"]:
            assert cell["bits"]["value"] == pytest.approx(BITS * worth)
            assert cell["bits"]["low"] < BITS * worth < cell["bits"]["high"]
    # Where the counts and texts are the same, a text's own ease is in no ratio.
    assert found[REFERENCE]["beside_reference"]["low"] == pytest.approx(1.0)


def test_cells_that_a_text_limits_are_not_compared() -> None:
    some = [row for row in TUNED if row.sequence == 0]
    full = [replace(row, final_loss_nats=0.1) if row.rank == 4 else row for row in some]
    of = {name: found["cells_compared"] for name, found in bits_by_placement(full).items()}
    assert of[PLACES[0].name] == of[REFERENCE] == 2


def test_the_law_with_factors_is_less_wrong_than_that_of_parameters_alone() -> None:
    some = {place.name for place in PLACES[1:8:2]} | {REFERENCE}
    found = law_findings([row for row in TUNED if row.sequence == 1 and row.placement in some])
    of_cells = {law["worth"]: law["new_cell"]["error"] for law in found["laws"]}
    assert of_cells["one_factor"] < 0.5 * of_cells["parameters"]
    worths = {worth["name"]: worth for worth in found["worths"]}
    assert worths[REFERENCE]["value"] == 1.0
    for name in some:
        worth = WORTH[name]
        assert worths[name]["low"] <= worth * 1.02 and worths[name]["high"] >= worth * 0.98


def test_an_order_by_speed_is_not_taken_for_the_order_at_the_end() -> None:
    early, *_, late = orders(TUNED)
    assert early["correlation"]["value"] == pytest.approx(-1.0, abs=0.1)
    assert early["first_is_first"] == 0.0
    assert late["correlation"]["value"] > early["correlation"]["value"]
    first, *_ = orders_tuned_early(tuning_rows(ROWS))
    assert first["of"] == len(PLACES) and first["correlation"] < 0


def test_twice_the_steps_are_told_apart() -> None:
    found = more_steps(ROWS)
    assert [row["placement"] for row in found] == [place.name for place in PLACES]
    for row in found:
        assert row["bits_twice"] == pytest.approx(1.1 * row["bits"])
        assert row["fall"] > 0 and row["fall_told"] == 0.1


def test_rates_tell_what_the_default_leaves() -> None:
    (of_first,) = [found for found in rates(ROWS) if found["placement"] == PLACES[0].name]
    losses = of_first["final_loss"]
    assert of_first["best"] == 0.03 and not of_first["edge"]
    assert of_first["default_above_best"] == pytest.approx(losses[0.01] - losses[0.03])


def test_a_table_is_read_as_it_was_written_also_by_fit(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    append_rows(file, TUNED[:5], ["losses in nats", "one machine"])
    append_rows(file, TUNED[5:], ["losses in nats", "another machine"])
    found = read_rows(file)
    # Seven digits are kept.
    for read, written in zip(found, TUNED, strict=True):
        assert (read.placement, read.rank, read.length) == (
            written.placement, written.rank, written.length
        )  # fmt: skip
        assert read.curve == pytest.approx(written.curve, rel=1e-6)
        assert read.delta_loss == pytest.approx(written.delta_loss, rel=1e-5)
    assert read_notes(file) == ["losses in nats", "one machine", "another machine"]
    write_rows(file, TUNED, [])
    data = read_law_data(file)
    assert len(data) == len(TUNED) and len(data.placements) == len(PLACES)
    assert all(site.kind != "other" for place in data.placements for site in place.sites)


def test_findings_are_of_part_of_a_table_too() -> None:
    assert read_rows(Path("no such table.csv")) == []
    with pytest.raises(DataError, match="--measure"):
        findings([])
    part = [row for row in ROWS if row.placement == PLACES[0].name and row.sequence == 0]
    said = describe(findings(part))
    assert PLACES[0].name in said and "one text" in said


def test_one_text_has_no_interval() -> None:
    assert over_texts([2.0]).low is None
    mean = over_texts([1.0, 2.0, 3.0])
    # Student's 95th percentile with two degrees of freedom is 2.920.
    assert mean.low == pytest.approx(2.0 - 2.920 / math.sqrt(3), abs=1e-3)
