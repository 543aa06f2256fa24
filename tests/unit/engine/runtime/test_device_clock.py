"""What a CPU pack costs is what its threads used, whatever its neighbours do."""

from __future__ import annotations

import time

import pytest
import torch

from pmlray.engine.runtime.device_clock import DeviceClock, paid_seconds

CPU = torch.device("cpu")


def burn(seconds: float) -> None:
    """Use so many CPU seconds of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_waiting_costs_nothing_on_a_cpu() -> None:
    clock = DeviceClock(1, CPU, lambda i: (i,), 0.0)
    burn(0.1)
    time.sleep(0.3)
    clock.note(0, 1.0)
    clock.lap(training=True)
    assert clock.gpu_seconds[0] == pytest.approx(0.1, abs=0.05)
    assert clock.wall_seconds[0] >= 0.4 and clock.training_seconds >= 0.4


def test_every_thread_of_the_process_is_paid_for() -> None:
    product = torch.ones(700, 700)
    before, own = paid_seconds(CPU), time.thread_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(40):
            product @ product
    finally:
        torch.set_num_threads(threads)
    assert paid_seconds(CPU) - before > 1.3 * (time.thread_time() - own)


def test_adapters_pay_by_their_work_and_followers_share_their_trunks() -> None:
    clock = DeviceClock(3, CPU, lambda i: (0, 1) if i == 0 else (i,), 0.0)
    clock.note(0, 2.0)
    clock.note(2, 6.0)
    burn(0.08)
    clock.lap(training=True)
    a, b, c = clock.gpu_seconds
    assert a == b and c == pytest.approx(6 * a)
    assert clock.done_work == 8.0
    state = clock.get_state()
    other = DeviceClock(3, CPU, lambda i: (i,), 0.0)
    other.set_state(state)
    assert (other.gpu_seconds, other.done_work) == (clock.gpu_seconds, 8.0)
