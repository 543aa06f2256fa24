"""The packing planner beside plain oracles: nothing lost, all packs fit, near the best."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmlray.design.packing import (
    GROWTH,
    LEAST_RUNS,
    MEMORY_SHARE,
    Device,
    Load,
    PackUse,
    deal_out,
    learn_device,
    nonnegative_fit,
    padded_batches,
    worthwhile_runs,
)

LOADS = st.lists(
    st.builds(
        Load,
        runs=st.integers(1, 5),
        rows=st.integers(1, 4),
        positions=st.integers(1, 500),
        seconds=st.floats(0.1, 100),
    ),
    min_size=1,
    max_size=7,
)
ANY = lambda *_: True  # noqa: E731


def use(rows: int, positions: int, steps: int, **changes: float) -> PackUse:
    seconds = steps * (0.01 + 1e-5 * positions)
    memory = 10**9 + 2 * 10**6 * rows + 10**5 * positions
    values = {"training_seconds": seconds, "wall_seconds": seconds + 16, "memory_bytes": memory}
    values |= {"device_memory_bytes": 8 * 10**9} | changes
    return PackUse(rows, positions, steps, steps * positions, **values)  # type: ignore[arg-type]


@given(LOADS, st.integers(1, 4), st.integers(1, 1500))
def test_every_group_is_dealt_out_once_and_fits(
    groups: list[Load], n_devices: int, most: int
) -> None:
    packs = deal_out(groups, n_devices, lambda load: load.positions <= most)
    assert sorted(i for pack in packs for i in pack) == list(range(len(groups)))
    for pack in packs:
        assert len(pack) == 1 or sum(groups[i].positions for i in pack) <= most
    assert len(packs) >= min(n_devices, len(groups))


@settings(max_examples=50)
@given(LOADS, st.integers(1, 3))
def test_where_all_fits_there_is_a_pack_a_device_and_it_ends_early(
    groups: list[Load], n_devices: int
) -> None:
    packs = deal_out(groups, n_devices, ANY)
    assert len(packs) == min(n_devices, len(groups))
    ends = max(sum(groups[i].seconds for i in pack) for pack in packs)
    best = min(
        max(
            sum(g.seconds for g, device in zip(groups, choice, strict=True) if device == d)
            for d in range(n_devices)
        )
        for choice in product(range(n_devices), repeat=len(groups))
    )
    assert best <= ends + 1e-9 and ends <= (4 / 3) * best + 1e-9


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 4000))
def test_batches_hold_every_row_once_with_less_than_a_tenth_of_padding(
    lengths: list[int], most: int
) -> None:
    batches = padded_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[i] for i in batch]
        cells = [[1] * n + [0] * (max(own) - n) for n in own]
        total = sum(map(len, cells))
        assert sum(map(sum, cells)) > 0.9 * total
        assert total <= most or len(batch) == 1


def test_rows_of_one_length_share_full_batches() -> None:
    assert [len(batch) for batch in padded_batches([10] * 25, 100)] == [10, 10, 5]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 8))
def test_no_other_set_of_positive_coefficients_fits_better(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    # Columns that are told apart, of such different sizes as steps and positions are.
    x = (rng.uniform(0.1, 10, (n, 3)) + 10 * np.eye(n, 3)) * [1e4, 1.0, 1e2]
    y = rng.normal(3, 5, n)
    found = np.array(nonnegative_fit(x, y))
    assert found.min() >= 0
    best = float(y @ y)
    for size in (1, 2, 3):
        for columns in combinations(range(3), size):
            some = np.linalg.lstsq(x[:, columns], y)[0]
            if some.min() >= 0:
                best = min(best, float(np.sum((y - x[:, columns] @ some) ** 2)))
    assert float(np.sum((y - x @ found) ** 2)) <= best * (1 + 1e-6) + 1e-9


@given(st.lists(st.floats(0.97, 1.03), min_size=1, max_size=5), st.integers(1, 2000))
def test_what_packs_of_one_kind_tell_is_put_down_to_the_first_column(
    noise: list[float], positions: int
) -> None:
    x = [[f * 50 * positions, 50, 50] for f in noise]
    position, step, rows = nonnegative_fit(x, [7 * f for f in noise])
    assert (step, rows) == (0, 0)
    assert position * 50 * positions == pytest.approx(7, rel=1e-9)


def test_after_packs_of_one_kind_the_next_is_of_another() -> None:
    """So no kind goes on for ever, whichever a search begins with."""
    run = Load(1, 1, 100, 1.0)
    seen = [use(6, 600, 100)]
    for expected in (LEAST_RUNS, None):
        device = learn_device(seen)
        assert device is not None and device.one_kind == (expected is not None)
        found = worthwhile_runs(device, run, 100, 50)
        assert expected in (None, found)
        seen.append(use(found, 100 * found, 100))
    # What one more run is worth is known: a step's own 10 ms are a tenth of 90 runs' 1 ms each.
    assert found == 12 and not device.holds(13, 1300)
    small = learn_device([use(LEAST_RUNS, 410, 100), use(LEAST_RUNS, 395, 300)])
    assert small is not None and worthwhile_runs(small, run, 100, 50) == 2 * LEAST_RUNS


def test_memory_of_packs_of_one_kind_is_said_to_grow_with_them() -> None:
    device = learn_device([use(4, 400, 100, memory_bytes=10**9) for _ in range(3)])
    assert device is not None
    assert device.memory(8, 800) == pytest.approx(2 * 10**9)


def test_a_device_is_recovered_from_its_packs() -> None:
    packs = [use(4, 400, 100), use(8, 1000, 50), use(2, 100, 200), use(16, 900, 10)]
    device = learn_device(packs)
    assert device is not None
    assert device.step_seconds == pytest.approx(0.01)
    assert device.position_seconds == pytest.approx(1e-5)
    assert device.start_seconds == pytest.approx(16)
    assert device.memory(10, 700) == pytest.approx(10**9 + 2 * 10**7 + 7 * 10**7, rel=1e-6)
    assert (device.seen_rows, device.seen_positions) == (16, 1000)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3000), st.floats(0.5, 2)), min_size=1))
def test_no_pack_took_more_memory_than_is_said(seen: list[tuple[int, int, float]]) -> None:
    packs = [
        use(rows, positions, 10, memory_bytes=int(noise * (10**9 + 10**5 * positions)))
        for rows, positions, noise in seen
    ]
    device = learn_device(packs)
    assert device is not None
    for pack in packs:
        assert device.memory(pack.rows, pack.positions) >= pack.memory_bytes * (1 - 1e-9)


def test_larger_adapters_take_their_known_memory() -> None:
    """Of packs of equal rows and positions, whose ranks alone say why one took more."""
    column_bytes, small, large = 10**6, 4 * 8, 4 * 64
    packs = [
        use(4, 400, 100, columns=columns, column_bytes=column_bytes,
            memory_bytes=10**9 + 2 * 10**8 + column_bytes * columns)
        for columns in (small, large)
    ]  # fmt: skip
    device = learn_device(packs)
    assert device is not None
    for pack in packs:
        assert device.memory(4, 400, pack.columns) == pytest.approx(pack.memory_bytes)
    spare = MEMORY_SHARE * 8e9 - device.memory(4, 400)
    most = int(spare / column_bytes)
    assert device.holds(4, 400, most) and not device.holds(4, 400, most + 1)
    assert device.share_held(8, 800, 2 * most) < 1 == device.share_held(4, 400, most)
    # So fewer runs of a large rank are asked for at once.
    run = Load(1, 1, 100, 1.0, rank=1000)
    asked = worthwhile_runs(device, run, 100, 500)
    assert device.holds(asked, 100 * asked, 1000 * asked)
    assert not device.holds(asked + 1, 100 * (asked + 1), 1000 * (asked + 1))


def test_memory_bounds_a_pack_and_what_was_not_seen_is_a_guess() -> None:
    device = learn_device([use(4, 4000, 100), use(8, 8000, 100)])
    assert device is not None
    assert device.holds(8, 8000) and device.holds(16, int(GROWTH * 8000))
    assert not device.holds(8, int(GROWTH * 8000) + 1)
    full = learn_device([use(8, 8000, 100, memory_bytes=int(0.8 * 8e9))])
    assert full is not None and full.holds(8, 8000)
    assert not full.holds(8, int(8000 * MEMORY_SHARE / 0.8) + 10)
    # Nothing said what the device has.
    blind = learn_device([use(8, 8000, 100, memory_bytes=0)])
    assert blind is not None and blind.holds(16, 16000) and not blind.holds(17, 16000)


def test_before_anything_is_measured_nothing_is_learnt() -> None:
    assert learn_device([]) is None
    assert learn_device([use(4, 400, 100, training_seconds=0.0)]) is None
    assert worthwhile_runs(None, Load(1, 1, 100, 1.0), 100, 50) == LEAST_RUNS


@given(
    st.floats(0, 0.1), st.floats(1e-6, 1e-3), st.floats(0, 60), st.integers(1, 500),
    st.integers(1, 2000), st.integers(1, 200),
)  # fmt: skip
@example(step=0.0, position=1e-6, start=1e-6, positions=1, steps=1, known=6)
def test_a_pack_is_the_smallest_that_keeps_overheads_within_their_shares(
    step: float, position: float, start: float, positions: int, steps: int, known: int
) -> None:
    device = Device(step, position, start, 0, 0, 0, 0, 10**9, 10**9)

    def enough(k: int) -> bool:
        one_step = step + k * position * positions
        # Rounding alone is forgiven: an allowance in seconds may be more than a start takes.
        shares = (step / one_step, start / (start + steps * one_step))
        return max(shares) <= 0.1 * (1 + 1e-9)

    found = worthwhile_runs(device, Load(1, 1, positions, 1.0), steps, known)
    most = max(LEAST_RUNS, known)
    oracle = next((k for k in range(LEAST_RUNS, most) if enough(k)), most)
    assert abs(found - oracle) <= 1 and LEAST_RUNS <= found <= most


@pytest.mark.parametrize(("n_devices", "wanted"), [(1, 60), (2, 30), (8, 7), (64, LEAST_RUNS)])
def test_the_packs_of_all_devices_have_no_more_runs_than_are_known(
    n_devices: int, wanted: int
) -> None:
    slow_start = Device(0.01, 1e-5, 600, 0, 0, 0, 0, 10**9, 10**9)
    assert worthwhile_runs(slow_start, Load(1, 1, 100, 1.0), 100, 60, n_devices) == wanted


def test_a_pack_is_no_larger_than_its_device() -> None:
    device = Device(1.0, 1e-5, 60, 0, 0, 10**6, 10**9, 1000, 10**6)
    assert worthwhile_runs(device, Load(1, 1, 100, 1.0), 100, 500) == 8
    assert worthwhile_runs(device, Load(1, 1, 10**4, 1.0), 100, 500) == 1


def test_what_a_busy_device_will_do_sooner_is_left_to_it() -> None:
    groups = [Load(1, 1, 10, 10.0) for _ in range(6)]

    def holds(load: Load) -> bool:
        return True

    # Of three devices one has 30 s to go, one is nearly done; the third takes what ends soonest.
    assert [len(p) for p in deal_out(groups, 3, holds, busy=[30.0, 0.0])] == [3]
    assert deal_out(groups, 3, holds, busy=[100.0, 100.0]) == (tuple(range(6)),)
    # With as many packs out as devices, one that asks has just become free.
    assert len(deal_out(groups, 1, holds, busy=[0.0])) == 1
