"""A pack that was cut off goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.runtime.checkpoints import (
    AskedToLeave,
    Checkpoints,
    file_name,
    is_whole,
    newest_first,
    superseded,
)
from pmlray.engine.training.loop import PackLoop
from pmlray.engine.training.metrics import TrainedMember
from pmlray.memory import Record
from pmlray.types import METHODS, MemftRules, PlannedRun
from scripts.bench.chaos.faults import with_nan
from tests.unit.engine.conftest import make_run, random_record, train

RULES = MemftRules(margin=0.6, recheck_epochs=2)
# Everything that carries state from step to step: dropout's generators, records in random turns,
# budgets that share a trunk, the window, what leaves a batch and comes back, early ends.
RECORDS = [random_record(6, sequence_id=i) for i in range(5)]
MANY = (
    [
        *(make_run(2, 30, 40, method) for method in METHODS),
        make_run(2, 30, 24),
        make_run(3, 30, 40),
    ],
    [RECORDS] * (len(METHODS) + 2),
    Recipe(learning_rate=2e-2, batch_size=2, dropout=0.1, warmup_steps=4, decay_share=0.2),
)
ONE = (
    [
        make_run(rank, 24, 48, method)
        for rank in (1, 8)
        for method in ("sft", "memft_rd", "memft_sw")
    ]
    + [make_run(8, 24, 64)],
    [[random_record(24)]] * 7,
    Recipe(learning_rate=5e-2, stop_loss=0.02, stop_gain=10.0, warmup_steps=2),
)
Pack = tuple[Sequence[PlannedRun], Sequence[Sequence[Record]], Recipe]


class Cut:
    """Asks to leave at some calls, as the loop asks after every step."""

    def __init__(self, at: int) -> None:
        self.at, self.asked = at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.at


def outcome(members: dict[int, TrainedMember]) -> dict[int, TrainedMember]:
    """All that is not time."""
    return {i: replace(m, gpu_seconds=0.0, wall_seconds=0.0) for i, m in members.items()}


@pytest.mark.parametrize("pack", [MANY, ONE], ids=["many records", "one record"])
def test_a_pack_cut_off_again_and_again_ends_bit_for_bit_as_undisturbed(
    tiny: Callable[..., BaseModel], tmp_path: Path, pack: Pack
) -> None:
    runs, records, recipe = pack
    base = tiny()
    undisturbed = outcome(train(base, runs, records, recipe, RULES).members)
    assert len({len(m.step_losses) for m in undisturbed.values()}) > 1
    found: dict[int, TrainedMember] = {}
    # After steps 1, 8, 15, 31, 37, 47 and 63: before and after looks, in decays.
    for at in (1, 7, 7, 16, 6, 10, 16, 1000):
        keeper = Checkpoints(tmp_path, runs, every=1e9, leave=Cut(at))
        try:
            train(base, runs, records, recipe, RULES, keeper, found.update)
        except AskedToLeave:
            continue
        break
    assert len(found) == len(runs)
    for i, member in outcome(found).items():
        assert member == undisturbed[i], runs[i].method


def test_a_checkpoint_holds_all_state_of_the_loop() -> None:
    """Whoever adds state to the loop decides here whether a checkpoint must hold it."""
    parts = "_weights _dropout _trunks clock _stopping _metrics _schedules"
    own_state = "active _began"
    same_anew = "_model _stepper _optimizer _members _recipe _rules _read_off _take_step"
    same_anew += " _parts _admission"
    assigned = {name for name in PackLoop.__init__.__code__.co_names if name.startswith("_")} | {
        "active",
        "clock",
    }
    own = {name for name in assigned if not hasattr(PackLoop, name) and not name.startswith("__")}
    assert own == {*parts.split(), *own_state.split(), *same_anew.split()}


def test_a_checkpoint_cut_short_is_told_and_the_one_before_it_used(
    tiny: Callable[..., BaseModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs, records, recipe = [make_run(2, 16, 20)], [[random_record(16)]], Recipe(learning_rate=1e-2)
    base = tiny()
    undisturbed = outcome(train(base, runs, records, recipe).members)
    with pytest.raises(AskedToLeave):
        train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 0.0, Cut(9)))
    newest, before = newest_first(path.name for path in tmp_path.iterdir())
    assert [int(name[5:13]) for name in (newest, before)] == [9, 8]
    with safe_open(tmp_path / before, "pt") as file:
        assert {"adapters.factors.0.A", "optimizer.count_N"} <= set(file.keys())
    whole = (tmp_path / newest).read_bytes()
    (tmp_path / newest).write_bytes(whole[: len(whole) // 2])
    cut = Cut(1)
    with pytest.raises(AskedToLeave, match="after step 9"):
        train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 1e9, cut))
    assert "cut short" in caplog.text
    found: dict[int, TrainedMember] = {}
    train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 1e9, Cut(0)), found.update)
    assert outcome(found) == undisturbed


def test_an_adapter_that_is_nan_in_a_checkpoint_fails_alone(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    """As `scripts/bench/chaos/chaos.py` feeds it."""
    runs = [make_run(2, 16, 40), make_run(4, 16, 40)]
    records, recipe = [[random_record(16)]] * 2, Recipe(learning_rate=1e-2)
    base = tiny()
    undisturbed = outcome(train(base, runs, records, recipe).members)
    with pytest.raises(AskedToLeave):
        train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 1e9, Cut(9)))
    (kept,) = tmp_path.iterdir()
    fed, name, poisoned = with_nan(kept.read_bytes())
    kept.unlink()
    (tmp_path / name).write_bytes(poisoned)
    found: dict[int, TrainedMember] = {}
    train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 1e9, Cut(0)), found.update)
    assert fed == 0 and undisturbed[0].divergence is None
    assert "stopped being a number" in str(found[0].divergence)
    assert outcome(found)[1] == undisturbed[1]


def test_a_pickle_or_another_packs_state_is_refused_and_training_starts_anew(
    tiny: Callable[..., BaseModel], tmp_path: Path
) -> None:
    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    runs, records, recipe = [make_run(2, 16, 6)], [[random_record(16)]], Recipe(learning_rate=1e-2)
    base = tiny()
    undisturbed = outcome(train(base, runs, records, recipe).members)
    content = pickle.dumps(Planted())
    (tmp_path / file_name(5, content)).write_bytes(content)
    others = [make_run(2, 16, 6, seed=1)]
    with pytest.raises(AskedToLeave):
        train(base, others, records, recipe, None, Checkpoints(tmp_path, others, 1e9, Cut(3)))
    found: dict[int, TrainedMember] = {}
    train(base, runs, records, recipe, None, Checkpoints(tmp_path, runs, 1e9, Cut(0)), found.update)
    assert outcome(found) == undisturbed
    assert not (tmp_path / "ran").exists()


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10**9), st.data())
def test_any_damage_is_told_by_the_name(content: bytes, step: int, data: st.DataObject) -> None:
    name = file_name(step, content)
    assert is_whole(name, content)
    cut = data.draw(st.integers(0, len(content) - 1))
    assert not is_whole(name, content[:cut])
    flipped = bytes([content[cut] ^ 1])
    assert not is_whole(name, content[:cut] + flipped + content[cut + 1 :])


@given(st.lists(st.integers(0, 10**9), unique=True, max_size=6))
def test_the_newest_two_are_kept(steps: list[int]) -> None:
    names = [file_name(step, b"x") for step in steps]
    assert [
        int(name[5 : name.index("-", 5)]) for name in newest_first([*names, ".a.part"])
    ] == sorted(steps, reverse=True)
    assert set(superseded(names)) == {file_name(step, b"x") for step in sorted(steps)[:-2]}
