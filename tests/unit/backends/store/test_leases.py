"""Leases: one holder at a time, the dead are reclaimed, and who has lost his learns of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmlray.backends.store.file_leases import LeaseFolder, beating
from pmlray.backends.store.lease_rules import Holder, Seen, generations, in_force, may_take
from pmlray.errors import StoreError

HERE = Holder("node-1", "boot pid:1", 10, "100")
OTHER = Holder("node-2", "boot pid:2", 10, "100")


@given(st.floats(0, 1000), st.floats(0.1, 100), st.booleans())
def test_a_lease_of_another_node_is_taken_when_its_beats_are_too_old_and_only_then(
    age: float, stale: float, pid_is_used_here: bool
) -> None:
    starts = {10: "100"} if pid_is_used_here else {}
    assert may_take(Seen(3, OTHER, age), HERE, starts.get, stale) == (age > stale)


def test_a_dead_process_of_the_same_machine_frees_its_lease_at_once() -> None:
    seen = Seen(1, Holder("node-1", "boot pid:1", 11, "77"), 0.0)
    assert not may_take(seen, HERE, {11: "77"}.get, 30)
    assert may_take(seen, HERE, {}.get, 30)
    # Another process got its number.
    assert may_take(seen, HERE, {11: "99"}.get, 30)


def test_where_processes_cannot_be_told_only_the_beats_count() -> None:
    seen = Seen(1, Holder("node-1", "", 11, ""), 0.0)
    assert not may_take(seen, Holder("node-1", "", 10, ""), {}.get, 30)


def test_generations_are_read_off_file_names() -> None:
    there = generations(["3.free", "4", "4.stop", ".abc.part", "notes.txt"])
    assert there == {3: frozenset({"free"}), 4: frozenset({"", "stop"})}
    assert not in_force(4, there) and not in_force(3, there)
    assert in_force(5, {5: frozenset({""})}) and not in_force(5, {})


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first = LeaseFolder(tmp_path).take("driver")
    with pytest.raises(StoreError, match=f"process {os.getpid()} "):
        LeaseFolder(tmp_path).take("driver")
    LeaseFolder(tmp_path).take("another")
    first.give_back()
    assert LeaseFolder(tmp_path).take("driver").generation == first.generation + 1


def make_stranger(folder: Path, name: str, generation: int, seconds_ago: float) -> None:
    """A lease of another node, last touched so long ago."""
    path = folder / name / str(generation)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(OTHER)))
    (folder / "clock").touch()
    then = (folder / "clock").stat().st_mtime - seconds_ago
    os.utime(path, (then, then))


def test_a_stale_lease_is_reclaimed_and_its_holder_learns_of_it(tmp_path: Path) -> None:
    leases = LeaseFolder(tmp_path)
    make_stranger(tmp_path, "run", 7, 29)
    with pytest.raises(StoreError, match="node-2"):
        leases.take("run")
    assert leases.still_in_force("run", 7)
    make_stranger(tmp_path, "run", 7, 31)
    taken = leases.take("run")
    assert taken.generation == 8 and not leases.still_in_force("run", 7)
    assert taken.beat()
    # Someone takes this one in turn.
    make_stranger(tmp_path, "run", 9, 0)
    assert not taken.beat()


def test_of_many_takers_of_a_stale_lease_one_gets_it(tmp_path: Path) -> None:
    make_stranger(tmp_path, "run", 1, 1000)
    won, start = [], threading.Barrier(8)

    def take() -> None:
        start.wait()
        with suppress(StoreError):
            won.append(LeaseFolder(tmp_path).take("run"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lease.generation for lease in won] == [2]


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from pmlray.backends.store.file_leases import LeaseFolder;"
        "LeaseFolder(pathlib.Path(sys.argv[1])).take('run'); print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=str(process.pid)):
            LeaseFolder(tmp_path).take("run")
    finally:
        process.kill()
        process.wait()
        process.communicate()
    assert LeaseFolder(tmp_path).take("run").generation == 2


def test_work_under_a_lease_ends_when_its_holder_wants_to_leave(tmp_path: Path) -> None:
    leases = LeaseFolder(tmp_path)
    lease = leases.take("driver")
    assert leases.still_in_force("driver", lease.generation)
    lease.ask_to_stop()
    assert not leases.still_in_force("driver", lease.generation)
    # It is still its holder's, until it has left.
    assert lease.beat() and not leases.is_free("driver")
    lease.give_back()
    assert leases.is_free("driver")
    assert leases.still_in_force("driver", leases.take("driver").generation)


def test_heartbeats_keep_a_lease_young_and_report_its_loss(tmp_path: Path) -> None:
    leases = LeaseFolder(tmp_path)
    lease, lost = leases.take("run"), threading.Event()
    path = tmp_path / "run" / "1"
    os.utime(path, (0, 0))
    with beating([lease], lost.set, every=0.01):
        deadline = threading.Event()
        for _ in range(6000):
            if path.stat().st_mtime > 0:
                break
            deadline.wait(0.01)
        assert path.stat().st_mtime > 0
        make_stranger(tmp_path, "run", 2, 0)
        assert lost.wait(60)
