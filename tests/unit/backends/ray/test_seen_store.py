"""A worker on a node that does not see the store ends the search, and makes nothing there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmlray.backends.ray import seen_store
from pmlray.backends.ray.seen_store import await_driver, train_in_store
from pmlray.backends.ray.worker_plan import WorkerPlan
from pmlray.backends.ray.worker_pool import PackOutcome
from pmlray.backends.store.file_store import FileStore
from pmlray.backends.store.lease_rules import STALE_SECONDS
from pmlray.errors import StoreRefused
from tests.unit.backends.ray.test_worker_pool import Jobs, pack


def test_the_store_of_a_driver_is_seen(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with store.driver_lock() as driver:
        await_driver(tmp_path, driver.generation, 0.0)
    # Its driver has ended, and another has begun: that they leave is told by the leases.
    await_driver(tmp_path, driver.generation, 0.0)
    with store.driver_lock():
        await_driver(tmp_path, driver.generation, 0.0)


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an earlier lease", "a dead one"])
def test_a_folder_of_the_same_name_elsewhere_is_told(there: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    if there != "nothing":
        store.mkdir()
    if "lease" in there or "dead" in there:
        lease = FileStore(store).leases.take("driver")
        if there == "a dead one":
            path = store / "leases" / "driver" / str(lease.generation)
            long_ago = path.stat().st_mtime - 2 * STALE_SECONDS
            os.utime(path, (long_ago, long_ago))
    before = sorted(tmp_path.rglob("*"))
    driver = 1 if there == "a dead one" else 2
    with pytest.raises(StoreRefused, match=r"does not see the store .*every node sees"):
        await_driver(store, driver, 0.0)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "clock"] == before


class Calls:
    """An actor in this process, of which `refuse.remote` is called."""

    def __init__(self, jobs: Jobs) -> None:
        self.refuse, self.remote = self, jobs.refuse


def test_the_search_ends_at_once_with_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_store, "SHARED_FOLDER_SECONDS", 0.0)
    monkeypatch.setattr(seen_store.ray, "get", lambda done: done)
    jobs = Jobs()
    jobs.prepare(1)
    plan = WorkerPlan(None, str(tmp_path / "store"), 0, 1, 1, 60.0)  # type: ignore[arg-type]
    trained: list[int] = []
    train_in_store(plan, Calls(jobs), lambda: trained.append(1))
    outcome = jobs.run(pack(0))
    assert not trained and outcome == jobs.run(pack(1))
    assert outcome.training_seconds is None and "does not see the store" in outcome.reason
    assert not (tmp_path / "store").exists()


def test_a_store_refused_while_training_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_store.ray, "get", lambda done: done)
    jobs, store = Jobs(), FileStore(tmp_path)

    def train() -> None:
        raise StoreRefused("of a newer version")

    with store.driver_lock() as driver:
        plan = WorkerPlan(None, str(tmp_path), 0, 1, driver.generation, 60.0)  # type: ignore[arg-type]
        train_in_store(plan, Calls(jobs), train)
    assert jobs.run(pack(0)) == PackOutcome(None, "of a newer version")
