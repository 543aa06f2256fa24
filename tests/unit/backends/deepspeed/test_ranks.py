"""Ranks that train one run together keep it at the same steps, leave together, and go on alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pmlray.backends.deepspeed.ranks import Following, Leading, Ranks
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.pack_state import PackState
from pmlray.types import DesignPoint, PlannedRun

RUN = PlannedRun(DesignPoint(1, 16, 10), "sft", 0, 0, "law", "a" * 16)


class Told(Ranks):
    """What rank 0 says waits until another rank hears it."""

    def __init__(self) -> None:
        self.words: deque[Any] = deque()

    def say(self, word: Any) -> None:
        self.words.append(word)

    def hear(self) -> Any:
        return self.words.popleft()


class Stateful:
    """One rank's part of a run."""

    def __init__(self, *, is_done: bool = False) -> None:
        self.clock = DeviceClock(1, torch.device("cpu"), lambda _: (0,), 0.0)
        self.is_done, self.taken = is_done, 0

    def get_state(self) -> PackState:
        self.taken += 1
        return PackState({"a": torch.tensor([0.1, 0.2])}, {"step": 7})

    def set_state(self, state: PackState) -> None:
        raise AssertionError("another one's state")


def sides(
    folder: Path, every: float = 0.0, leave: Callable[[], bool] = lambda: False
) -> tuple[Told, Leading, Following]:
    told = Told()
    return (
        told,
        Leading(told, Checkpoints(folder, [RUN], every, leave, sharded=True)),
        Following(told),
    )


def test_all_ranks_give_their_part_when_rank_0_keeps_a_run(tmp_path: Path) -> None:
    told, leading, following = sides(tmp_path)
    first, second = Stateful(), Stateful()
    for step in (1, 2):
        leading.after(first, step)
        following.after(second, step)
        assert first.taken == second.taken == step and not told.words


@pytest.mark.parametrize(("finished", "kept"), [(False, 0), (True, 1)])
def test_between_two_checkpoints_a_run_is_kept_only_after_another(
    tmp_path: Path, finished: bool, kept: int
) -> None:
    told, leading, following = sides(tmp_path, every=1000.0)
    first, second = Stateful(), Stateful()
    leading.after(first, 1, finished)
    following.after(second, 1)
    assert first.taken == second.taken == kept and not told.words


def test_all_ranks_leave_when_rank_0_is_asked_to_and_go_on_from_there(tmp_path: Path) -> None:
    told, leading, following = sides(tmp_path, every=1000.0, leave=lambda: True)
    first, second = Stateful(), Stateful()
    with pytest.raises(AskedToLeave):
        leading.after(first, 7)
    with pytest.raises(AskedToLeave):
        following.after(second, 7)
    assert first.taken == second.taken == 1 and not told.words

    told, leading, following = sides(tmp_path)
    for state in (leading.resume(), following.resume()):
        assert state is not None and state.facts["step"] == 7
        assert torch.equal(state.tensors["a"], torch.tensor([0.1, 0.2]))


def test_no_rank_leaves_a_run_that_is_done(tmp_path: Path) -> None:
    told, leading, following = sides(tmp_path, leave=lambda: True)
    first, second = Stateful(is_done=True), Stateful(is_done=True)
    leading.after(first, 10)
    following.after(second, 10)
    assert first.taken == second.taken == 0 and not told.words


def test_neither_way_of_training_goes_on_from_the_other_ones_state(tmp_path: Path) -> None:
    _told, leading, _ = sides(tmp_path)
    leading.after(Stateful(), 7)
    packed = Checkpoints(tmp_path, [RUN], 0.0, lambda: False)
    assert packed.resume(Stateful()) == 0


def test_a_fresh_pack_has_no_state_on_any_rank(tmp_path: Path) -> None:
    _, leading, following = sides(tmp_path)
    assert leading.resume() is None and following.resume() is None
