"""A pack with a queue measures what its runs would alone; nobody waits for room that is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import CachedRecord
from pmlray.engine.runtime.checkpoints import AskedToLeave, Checkpoints
from pmlray.engine.scheduling.members import Admission, Member, make_members
from pmlray.engine.training.metrics import TrainedMember
from pmlray.types import METHODS, MemftRules, Room
from tests.unit.engine.conftest import make_run, random_record, train

RULES = MemftRules(margin=0.6, recheck_epochs=2)
SHARING = Recipe(
    learning_rate=2e-2, batch_size=2, dropout=0.1, warmup_steps=4, decay_share=0.2, stop_gain=10.0
)
LINEAR = Recipe(learning_rate=2e-2, schedule="linear", warmup_steps=0, stop_loss=0.3)
RECORDS = [random_record(6, sequence_id=i) for i in range(3)]


@pytest.mark.parametrize("recipe", [SHARING, LINEAR], ids=["trunks and dropout", "linear"])
def test_a_pack_with_a_queue_equals_separate_runs(
    tiny: Callable[..., BaseModel], recipe: Recipe
) -> None:
    base = tiny()
    runs = [make_run(1 + i, 18, 10 + 5 * (i % 3), m) for i, m in enumerate(METHODS)]
    # Two budgets that share a trunk, where the recipe lets them, and one that ends early.
    runs += [make_run(4, 18, 24, seed=1), make_run(4, 18, 14, seed=1), make_run(8, 18, 33, seed=2)]
    queued = train(base, runs, [RECORDS] * len(runs), recipe, RULES, room=Room(5, 60))
    assert queued.model.lora.n_slots < len(runs)
    together = train(base, runs, [RECORDS] * len(runs), recipe, RULES)
    late = 0
    for i, run in enumerate(runs):
        alone = train(base, [run], [RECORDS], recipe, RULES).members[0]
        found = queued.members[i]
        assert found.step_losses == pytest.approx(alone.step_losses, rel=1e-5), run
        assert [s for s, _ in found.curve] == [s for s, _ in alone.curve]
        assert [x for _, x in found.curve] == pytest.approx([x for _, x in alone.curve], rel=1e-4)
        assert [s for s, _ in found.token_p_curve] == [s for s, _ in alone.token_p_curve]
        assert found.grad_norm == pytest.approx(alone.grad_norm, rel=1e-3)
        assert found.charged_steps == pytest.approx(together.members[i].charged_steps)
        late += found.pack_steps > len(found.step_losses)
    assert late >= 3


def test_a_queue_cut_off_again_and_again_ends_bit_for_bit_as_undisturbed(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    base, records = tiny(), [RECORDS] * (len(METHODS) + 2)
    runs = [make_run(2, 18, 12 + 4 * i, m) for i, m in enumerate(METHODS)]
    runs += [make_run(3, 18, 20), make_run(3, 18, 10)]
    room = Room(4, 48)

    def outcome(members: dict[int, TrainedMember]) -> dict[int, TrainedMember]:
        return {i: replace(m, gpu_seconds=0.0, wall_seconds=0.0) for i, m in members.items()}

    undisturbed = train(base, runs, records, SHARING, RULES, room=room).members
    steps = max(m.pack_steps for m in undisturbed.values())
    assert steps > max(len(m.step_losses) for m in undisturbed.values())
    found: dict[int, TrainedMember] = {}
    starts = 0
    while len(found) < len(runs):
        asked = iter(range(10**6))
        # Eleven steps a start: before, at and after changes of who is in.
        keeper = Checkpoints(tmp_path, runs, 1e9, lambda asked=asked: next(asked) == 10)
        try:
            train(base, runs, records, SHARING, RULES, keeper, found.update, room)
        except AskedToLeave:
            starts += 1
    assert starts >= steps // 11 - 1
    assert outcome(found) == outcome(undisturbed)


RUNS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 99)), min_size=1, max_size=8
)


def members_of(sizes: list[tuple[int, int, int]]) -> tuple[Member, ...]:
    runs = [make_run(1, length, steps, seed=i) for i, (_, length, steps) in enumerate(sizes)]
    blank = [
        CachedRecord(torch.zeros(n, 1), torch.zeros(n, 1), torch.zeros(n), 0) for _, n, _ in sizes
    ]
    return make_members(runs, [[c] * n for c, (n, _, _) in zip(blank, sizes, strict=True)])


@given(RUNS, st.integers(1, 6), st.integers(1, 80), st.data())
def test_all_enter_once_and_no_more_than_there_is_room_for(
    sizes: list[tuple[int, int, int]], rows: int, positions: int, data: st.DataObject
) -> None:
    admission = Admission(members_of(sizes), Recipe(batch_size=2), Room(rows, positions))

    def used(members: list[int]) -> tuple[int, int]:
        n = [min(2, sizes[i][0]) for i in members]
        return sum(n), sum(k * sizes[i][1] for k, i in zip(n, members, strict=True))

    def fits(members: list[int]) -> bool:
        return used(members)[0] <= rows and used(members)[1] <= positions

    inside: list[int] = []
    entered: list[int] = []
    while len(entered) < len(sizes):
        new = admission.enter(inside, entered)
        assert inside or new
        inside, entered = [*inside, *new], [*entered, *new]
        assert fits(inside) or len(inside) == 1
        assert len(inside) <= admission.most_at_once
        left = [i for i in range(len(sizes)) if i not in entered]
        assert not any(fits([*inside, i]) for i in left)
        inside.remove(data.draw(st.sampled_from(inside)))
    assert sorted(entered) == list(range(len(sizes)))


def test_what_is_compared_enters_together_and_the_longest_first() -> None:
    runs = [
        make_run(1, 10, t, m, seed) for seed, t in ((0, 5), (1, 50)) for m in ("sft", "memft_ot")
    ]
    record = CachedRecord(torch.zeros(10, 1), torch.zeros(10, 1), torch.zeros(10), 0)
    members = make_members(runs, [[record]] * 4)
    admission = Admission(members, LINEAR, Room(3, 1000))
    assert admission.enter([], []) == [2, 3] and admission.most_at_once == 3
    assert admission.enter([2], [2, 3]) == [0, 1]
    assert admission.enter([2, 3], [2, 3]) == []
