"""Replayed steps are the steps; what cannot be captured, or comes out otherwise, is let go of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pmlray.config import Recipe
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.config.search_spec import Probe
from pmlray.engine.model import head
from pmlray.engine.model.base_model import BaseModel, load_base_model
from pmlray.engine.model.pull import pull_model
from pmlray.engine.training import cuda_graph_step
from pmlray.engine.training.step import StepFound
from pmlray.types import Room
from tests.integration.engine.recording import Call, NotCapturable, Recorded
from tests.unit.engine.conftest import Trained, make_run, random_record, train

pytestmark = pytest.mark.slow

RECIPE = Recipe(learning_rate=1e-2)
# One leaves at 14, one at 20, one at 26: three layouts, each of them long enough to be captured.
RUNS = [
    make_run(2, 12, 14, "sft", 0),
    make_run(4, 40, 26, "memft_sw", 1),
    make_run(3, 25, 20, "memft_ot", 2),
]
RECORDS = [[random_record(run.point.seq_len, run.seed)] for run in RUNS]
Way = Callable[..., Trained]


@pytest.fixture(scope="module")
def trained() -> Iterator[Way]:
    pull_model(TINY)
    source = resolve_model(TINY, None)
    base: BaseModel = load_base_model(
        TINY, source, None, "float32", (Probe(layer=1).to_placement(),), torch.device("cpu")
    )
    with pytest.MonkeyPatch.context() as patch:
        # The head's way on a CPU asks values for the way, which no captured step may.
        patch.setattr(head, "_in_caches", lambda values: False)

        def run(
            recorder: Recorded | None,
            runs: Any = RUNS,
            records: Any = RECORDS,
            recipe: Recipe = RECIPE,
            **more: Any,
        ) -> Trained:
            patch.setattr(cuda_graph_step, "recorder_for", lambda device: recorder)
            return train(base, runs, records, recipe, **more)

        yield run


@pytest.fixture(scope="module")
def eager(trained: Way) -> Trained:
    return trained(None)


def assert_same(one: Trained, other: Trained) -> None:
    """Bit for bit."""
    for i, member in one.members.items():
        twin = other.members[i]
        assert twin.step_losses == member.step_losses
        assert (twin.curve, twin.grad_norm) == (member.curve, member.grad_norm)
        assert twin.token_p_curve == member.token_p_curve
    for mine, its in zip(one.model.lora.parameters(), other.model.lora.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_replayed_steps_are_the_steps(trained: Way, eager: Trained) -> None:
    recorder = Recorded()
    assert_same(eager, trained(recorder))
    assert recorder.records == 3
    # Of 26 steps, all but each layout's first three.
    assert recorder.replays == 26 - 3 * cuda_graph_step.STEPS_BEFORE_CAPTURE


def test_budgets_that_branch_off_and_members_that_wait(trained: Way) -> None:
    # Two budgets of one run, one whose tokens leave once they are recalled, and one that waits.
    runs = [make_run(4, 12, 40), make_run(4, 12, 60), make_run(8, 8, 60, "memft_rd", 1)]
    runs.append(make_run(2, 12, 14, "memft_ot", 2))
    records = [[random_record(run.point.seq_len, run.seed)] for run in runs]
    room = Room(3, 10_000)
    recorder = Recorded()
    more = {"room": room}
    assert_same(trained(None, runs, records, **more), trained(recorder, runs, records, **more))
    assert recorder.records > 3 and recorder.replays > 30


def test_rows_that_change_lie_in_padded_places(trained: Way) -> None:
    records = [random_record(4 + i % 3, i, prompt=4 + i % 2) for i in range(10)]
    runs = [make_run(2, 50, 16, "sft", 0), make_run(4, 50, 16, "memft_fw", 1)]
    runs.append(make_run(4, 10, 16, "memft_ot", 1))
    recipe = RECIPE.model_copy(update={"batch_size": 3, "dropout": 0.1})
    own = [records, records, records[:2]]
    recorder = Recorded()
    alone, replayed = trained(None, runs, own, recipe), trained(recorder, runs, own, recipe)
    for i, member in alone.members.items():
        assert replayed.members[i].step_losses == pytest.approx(member.step_losses, rel=1e-5)
        assert replayed.members[i].scores.nll[0] == pytest.approx(member.scores.nll[0], rel=1e-4)
    assert recorder.records == 1 and recorder.replays == 13


def test_steps_that_no_graph_suits_are_taken_one_by_one(trained: Way) -> None:
    # The longest of them would make all others ten times as long.
    records = [random_record(40 if i == 0 else 4, i) for i in range(6)]
    recorder = Recorded()
    runs, recipe = [make_run(2, 60, 8)], RECIPE.model_copy(update={"batch_size": 2})
    both = [trained(way, runs, [records], recipe) for way in (None, recorder)]
    assert_same(*both)
    assert recorder.records == 0


class Unfit(Recorded):
    """Fails in the middle of a step, as CUDA does."""

    def record(self, step: Callable[[], StepFound]) -> tuple[StepFound, Callable[[], None]]:
        super().record(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Forgetful(Recorded):
    """Leaves out a step's updates once it has been right so often."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self._right = right

    def replay(self, calls: list[Call]) -> None:
        late = self.replays > self._right
        super().replay([c for c in calls if not late or c[0].overloadpacket != torch.ops.aten.sub_])


@pytest.mark.parametrize("recorder", [Unfit(), Forgetful(0), Forgetful(3)])
def test_without_a_good_graph_steps_go_on_as_they_were(
    trained: Way, eager: Trained, recorder: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert_same(eager, trained(recorder))
    assert len(caplog.records) == 1 and "go on without" in caplog.text
    assert recorder.records == 1


def test_the_recorder_tells_what_no_graph_can_hold() -> None:
    x = torch.arange(3.0)
    for wrong in (lambda: x.sum().item(), lambda: x[x > 1], lambda: x + torch.tensor([1.0] * 3)):
        with pytest.raises(NotCapturable):
            Recorded().record(wrong)  # type: ignore[arg-type]
