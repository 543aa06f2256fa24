"""From a study's runs to packs with room: what is not safe at once waits in the pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pmlray.backends.store.file_store import FileStore
from pmlray.design import CostModel
from pmlray.design.packing import Device
from pmlray.study.budget.packs import ROOMFULS, known_device, packs_of, room_for
from pmlray.types import DesignPoint, Pack, PackTimes, PlannedRun, Room
from tests.fakes import observe

COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)


def run(length: int, seed: int) -> PlannedRun:
    return PlannedRun(DesignPoint(1, length, 10), "sft", 0, seed, "law", f"{length:08x}{seed:08x}")


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 4000),
    st.floats(0, 1e9),
    st.integers(1, 3),
)
def test_packs_are_of_a_few_roomfuls_and_each_room_is_safe(
    lengths: list[int], seen_rows: int, seen_positions: int, fixed: float, n_devices: int
) -> None:
    device = Device(0.1, 1e-4, 0, fixed, 1e6, 1e6, 2e9, seen_rows, seen_positions)
    runs = [run(length, i) for i, length in enumerate(lengths)]
    packs = packs_of([[r] for r in runs], n_devices, device, COST)
    assert sorted(r.run_key for own, _ in packs for r in own) == sorted(r.run_key for r in runs)
    for own, room in packs:
        rows, positions = len(own), sum(r.point.seq_len for r in own)
        assert (room is None) == device.holds(rows, positions)
        if room is None or len(own) == 1:
            continue
        assert device.holds(room.rows, room.positions) or min(room.rows, room.positions) == 1
        assert rows < ROOMFULS * (room.rows + 1) and positions < ROOMFULS * (room.positions + 1)


def test_what_a_pack_with_a_queue_shows_is_what_it_held_at_once() -> None:
    runs = [run(100, i) for i in range(6)]
    seen = [observe(r, 0, i, 0.0, 1e-3) for i, r in enumerate(runs)]
    times = [PackTimes("pack", 0, 1.0, 2.0)]
    whole = known_device(seen, times, COST)
    assert whole is not None and (whole.seen_rows, whole.seen_positions) == (6, 600)
    assert room_for(runs * 2, whole, COST) is None
    queued = [
        replace(o, provenance={**o.provenance, "room": {"rows": 2, "positions": 250},
                               "pack_steps": 10 * (1 + i // 2)})
        for i, o in enumerate(seen)
    ]  # fmt: skip
    part = known_device(queued, times, COST)
    assert part is not None and (part.seen_rows, part.seen_positions) == (2, 250)
    assert room_for(runs, part, COST) == Room(4, 400)
    # 200 positions in each of 30 steps, not of 10.
    assert part.position_seconds == 1.0 / 6000


def test_a_plan_keeps_its_room(tmp_path: Path) -> None:
    packs = (Pack(0, (run(1, 0),)), Pack(1, (run(2, 1), run(3, 2)), Room(1, 3)))
    store = FileStore(tmp_path)
    for pack in packs:
        store.put_plan(pack)
    assert store.plans() == packs
