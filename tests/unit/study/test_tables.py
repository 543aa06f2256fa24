"""Tables: what is written is read, and a replayed search is the live one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.backends.file_store import FileStore
from pmlray.config.prepared import PreparedSearch
from pmlray.errors import DataError
from pmlray.study.tables import TableRunner, read_table, write_table
from pmlray.types import Pack
from tests.fakes import SyntheticRunner
from tests.unit.study.test_law_search import run_to_end, start


def exhaustive(search: PreparedSearch, folder: Path) -> FileStore:
    store = FileStore(folder)
    runs = tuple(
        search.plan_run(point, "sft", *pair, "law")
        for point in search.spec.space.points()
        for pair in search.spec.replicates()
    )
    SyntheticRunner(store).run(Pack(0, runs))
    return store


def test_a_replayed_search_chooses_and_measures_what_the_live_one_does(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search("memft=null", "budget={gpu_seconds: 120}")
    table_file = tmp_path / "table.csv"
    n = write_table(table_file, exhaustive(search, tmp_path / "grid").observations(), ["made up"])
    table = read_table(table_file)
    assert len(table.rows) == n and table.provenance == ("made up",)
    live, live_store = start(search, tmp_path / "live")
    run_to_end(live, SyntheticRunner(live_store))
    offline, store = start(search, tmp_path / "offline")
    run_to_end(offline, TableRunner(table, store, "long_context"))
    expected = {o.run_key: o for o in live_store.observations()}
    found = {o.run_key: o for o in store.observations()}
    assert found.keys() == expected.keys() and len(found) > search.spec.design.n_initial
    for key, o in found.items():
        assert o.delta_loss == pytest.approx(expected[key].delta_loss, abs=1e-5)
        assert o.gpu_seconds == pytest.approx(expected[key].gpu_seconds)
        assert o.control_delta_loss == pytest.approx(expected[key].control_delta_loss, abs=1e-5)


def test_tables_without_a_control_are_read(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    some = exhaustive(search, tmp_path / "grid").observations()[:2]
    unmeasured, older = tmp_path / "unmeasured.csv", tmp_path / "older.csv"
    write_table(unmeasured, (replace(o, control_delta_loss=None) for o in some), [])
    older.write_text(
        "\n".join(line.rpartition(",")[0] for line in unmeasured.read_text().splitlines())
    )
    assert "control" in unmeasured.read_text() and "control" not in older.read_text()
    for file in (unmeasured, older):
        store = FileStore(tmp_path / file.stem)
        runs = tuple(search.plan_run(o.point, "sft", o.sequence_id, 0, "law") for o in some)
        result = TableRunner(read_table(file), store, "long_context").run(Pack(0, runs))
        assert [o.control_delta_loss for o in result.observations] == [None, None]


def test_a_run_that_the_table_lacks_fails(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = make_search()
    table_file = tmp_path / "table.csv"
    some = exhaustive(search, tmp_path / "grid").observations()[:3]
    write_table(table_file, some, [])
    store = FileStore(tmp_path / "store")
    runs = tuple(search.plan_run(p, "sft", 0, 0, "law") for p in search.spec.space.points())
    result = TableRunner(read_table(table_file), store, "long_context").run(Pack(0, runs))
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


def test_a_broken_row_names_its_line(
    make_search: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    file = tmp_path / "table.csv"
    write_table(file, exhaustive(make_search(), tmp_path / "grid").observations()[:2], ["x"])
    file.write_text(file.read_text() + "1,2,three\n")
    with pytest.raises(DataError, match="line 5"):
        read_table(file)
