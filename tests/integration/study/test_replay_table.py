"""Tables: what is written is read, and a replayed search is the live one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.design import Acquisition
from pmlray.errors import DataError
from pmlray.study.search.plan import first_cost, first_pack
from pmlray.study.search.replay_table import TableRunner, read_table, write_table
from pmlray.types import Observation, Pack
from tests.fakes import SyntheticRunner, observe
from tests.searches import exhaustive, run_to_end, start
from tests.unit.conftest import SEARCH

# What these tests need of a law is that its fits decide what comes next.
CHEAP = ("memft=null", "law={forms: [power, exponential_ceiling], n_bootstrap: 20}")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, ...]:
    """Every run of the unit tests' search, measured."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "unit.yaml").write_text(SEARCH)
    return exhaustive(prepare_search(folder / "unit.yaml"), folder / "store").observations()


def test_a_replayed_search_chooses_and_measures_what_the_live_one_does(
    make_search: Callable[..., PreparedSearch], grid: tuple[Observation, ...], tmp_path: Path
) -> None:
    search = make_search(*CHEAP, "budget={gpu_seconds: 50}")
    table_file = tmp_path / "table.csv"
    n = write_table(table_file, grid, ["made up"])
    table = read_table(table_file)
    assert len(table.rows) == n == len(grid) and table.provenance == ("made up",)
    live, live_store = start(search, tmp_path / "live")
    run_to_end(live, SyntheticRunner(live_store))
    offline, store = start(search, tmp_path / "offline")
    run_to_end(offline, TableRunner(table, store, "long_context", None))
    expected = {o.run_key: o for o in live_store.observations()}
    found = {o.run_key: o for o in store.observations()}
    assert found.keys() == expected.keys() and len(found) > search.spec.design.n_initial
    for key, o in found.items():
        assert o.delta_loss == pytest.approx(expected[key].delta_loss, abs=1e-5)
        assert o.gpu_seconds == pytest.approx(expected[key].gpu_seconds)
        assert o.control_delta_loss == pytest.approx(expected[key].control_delta_loss, abs=1e-5)


def test_tables_without_optional_columns_are_read(
    make_search: Callable[..., PreparedSearch], grid: tuple[Observation, ...], tmp_path: Path
) -> None:
    search, some = make_search(), grid[:2]
    unmeasured, older = tmp_path / "unmeasured.csv", tmp_path / "older.csv"
    write_table(unmeasured, (replace(o, control_delta_loss=None) for o in some), [])
    older.write_text(
        "\n".join(line.rsplit(",", 2)[0] for line in unmeasured.read_text().splitlines())
    )
    assert "control" in unmeasured.read_text() and "control" not in older.read_text()
    for file in (unmeasured, older):
        store = FileStore(tmp_path / file.stem)
        runs = tuple(search.plan_run(o.point, "sft", o.sequence_id, 0, "law") for o in some)
        result = TableRunner(read_table(file), store, "long_context", None).run(Pack(0, runs))
        assert [o.control_delta_loss for o in result.observations] == [None, None]


@pytest.mark.parametrize("rule", get_args(Acquisition))
def test_every_rule_searches_a_table_by_one_line(
    rule: str,
    make_search: Callable[..., PreparedSearch],
    grid: tuple[Observation, ...],
    tmp_path: Path,
) -> None:
    search = make_search(*CHEAP, "budget.gpu_seconds=40", f"design.acquisition={rule}")
    assert search.spec.design.acquisition == rule
    assert len(first_pack(search, first_cost(search, gpu=False))) == search.spec.design.n_initial
    table_file = tmp_path / "table.csv"
    write_table(table_file, grid, [])
    replayed, store = start(search, tmp_path / "store")
    run_to_end(replayed, TableRunner(read_table(table_file), store, "long_context", None))
    found = store.observations()
    assert len(found) > search.spec.design.n_initial and not store.failures()
    assert len({(o.point, o.sequence_id, o.seed) for o in found}) == len(found)
    spent, budget = sum(o.gpu_seconds for o in found), search.spec.budget.law_seconds
    dearest = 1e-3 * 128 * 100
    assert budget - dearest < spent <= budget


def test_a_run_that_the_table_lacks_fails(
    make_search: Callable[..., PreparedSearch], grid: tuple[Observation, ...], tmp_path: Path
) -> None:
    search = make_search()
    table_file = tmp_path / "table.csv"
    write_table(table_file, grid[:3], [])
    store = FileStore(tmp_path / "store")
    runs = tuple(search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points())
    runner = TableRunner(read_table(table_file), store, "long_context", None)
    result = runner.run(Pack(0, runs))
    assert 0 < len(result.observations) <= 3
    assert {f.reason for f in result.failed} == {"not in the table"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("rank,length\n1,2\n", "line 1: no column"),
    ],
)
def test_a_broken_table_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(file)


def test_a_broken_row_names_its_line(grid: tuple[Observation, ...], tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    write_table(file, grid[:2], ["x"])
    file.write_text(file.read_text() + "1,2,three\n")
    with pytest.raises(DataError, match="line 5"):
        read_table(file)


def test_budgets_are_charged_for_the_trunk_that_they_share_in_their_pack(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    """The table's runs were packed with all budgets of their family; a replayed pack may not be."""
    search = make_search("space.train_steps=[10, 20, 40]", "recipe.decay_share=0.5")
    point = search.spec.space.points()[0]
    family = [replace(point, train_steps=t) for t in (10, 20, 40)]
    runs = [search.plan_run(p, "sft", 0, 0, "law") for p in family]
    # By hand: 5 steps serve three, 5 two; then 10 alone; decays of 5, 10 and 20.
    paid = [5 / 3 + 5, 5 / 3 + 5 / 2 + 10, 5 / 3 + 5 / 2 + 30]
    observed = [
        replace(observe(run, 0, place, 0.0, 1e-3), charged_steps=steps, gpu_seconds=2.0 * steps)
        for place, (run, steps) in enumerate(zip(runs, paid, strict=True))
    ]
    # The longest one ended at half of what it would have paid.
    observed[2] = replace(observed[2], charged_steps=paid[2] / 2, gpu_seconds=paid[2])
    table_file = tmp_path / "table.csv"
    write_table(table_file, observed, [])
    runner = TableRunner(read_table(table_file), FileStore(tmp_path / "s"), "long_context", 0.5)
    for chosen, steps in (
        ((0, 1, 2), [paid[0], paid[1], paid[2] / 2]),
        ((1,), [20.0]),
        ((0, 2), [5 / 2 + 5, (5 / 2 + 35) / 2]),
    ):
        result = runner.run(Pack(0, tuple(runs[i] for i in chosen)))
        assert [o.charged_steps for o in result.observations] == pytest.approx(steps)
        assert [o.gpu_seconds for o in result.observations] == pytest.approx(
            [2.0 * x for x in steps]
        )
