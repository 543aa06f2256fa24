"""A search that is interrupted: what it ends with, and what it leaves for the call that goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmlray.api import search_run
from pmlray.api.search_run import SearchRun, run_search
from pmlray.backends.ray import run_packs
from pmlray.backends.store.file_store import FileStore
from pmlray.config import ClusterProfile
from pmlray.config.prepared_search import prepare_search
from pmlray.ports import PackSource
from tests.fakes import SyntheticRunner

SMOKE = Path(__file__).parents[3] / "searches" / "smoke.yaml"


class Tracked:
    """Tracker that keeps how the search ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[list[Path], str]] = []

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None

    def finish(self, artifacts: list[Path], status: str) -> None:
        self.ended.append((artifacts, status))


@pytest.mark.parametrize("reports", [True, False])
def test_an_interrupted_search_keeps_its_runs_and_reports_where_asked(
    reports: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tracked, drawn = FileStore(tmp_path / "store"), Tracked(), list[Path]()

    @contextmanager
    def no_ray(_address: str | None) -> Generator[None]:
        yield

    def one_pack(_search: Any, source: PackSource, *_: Any) -> None:
        pack = source.next_pack()
        assert pack is not None
        source.absorb(SyntheticRunner(store, noise=0.0).run(pack))
        raise KeyboardInterrupt

    monkeypatch.setattr(search_run, "ray_session", no_ray)
    monkeypatch.setattr(search_run, "spooled_tracker", lambda *_: tracked)
    monkeypatch.setattr(search_run, "await_imports", lambda: None)
    # Drawing takes as long as all the rest of this folder's tests.
    monkeypatch.setattr(search_run, "report_store", lambda folder, facts: drawn.append(folder))
    monkeypatch.setattr(run_packs, "run_packs_on_ray", one_pack)
    run = SearchRun(
        *(prepare_search(SMOKE, ()), ClusterProfile(), store.folder, "sqlite://", None),
        reports_interrupted=reports,
    )
    with pytest.raises(KeyboardInterrupt):
        run_search(run, lambda _: None)
    ((pages, status),) = tracked.ended
    assert status == "KILLED" and store.observations()
    assert drawn == ([store.folder] if reports else [])
    assert [page.name for page in pages] == (["report.html", "report.json"] if reports else [])
    # Given back, so that the next call need not wait.
    assert store.leases.is_free("driver")
