"""`memft_rd`: what leaves the batch, when it comes back, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import Row, micro_batches
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.scheduling.members import make_members
from pmlray.engine.scheduling.redistribution import Redistribution
from pmlray.types import MemftRules
from tests.unit.engine.conftest import make_run, random_record, train

RECIPE = Recipe(learning_rate=1e-2, batch_size=3)
LENGTHS = (4, 6, 5, 7, 4, 6, 5)


def make_redistribution(
    base: BaseModel, rules: MemftRules, batch_size: int = 3, head_work: float = 2.0
) -> tuple[Redistribution, tuple[Row, ...]]:
    records = [random_record(n, i) for i, n in enumerate(LENGTHS)]
    run = make_run(2, sum(LENGTHS), 40, "memft_rd", seed=5)
    (member,) = make_members([run], [build_prefix_cache(base, records)])
    return Redistribution(member, batch_size, rules, head_work), member.rows


def losses(p: Sequence[Sequence[float]]) -> dict[int, list[float]]:
    return {sample: [-math.log(x) for x in row] for sample, row in enumerate(p)}


def recalled(*but: tuple[int, int, float]) -> list[list[float]]:
    """p of every token: 0.9, but for (record, token, p)."""
    p = [[0.9] * n for n in LENGTHS]
    for record, token, value in but:
        p[record][token] = value
    return p


def test_records_leave_as_a_whole_and_come_back(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(margin=0.8))
    assert found.open == rows and not found.done and found.left_out == ()
    # Before its first step nothing is known of a record, which stays.
    p = losses(recalled((1, 2, 0.79), (3, 0, 0.1))) | {6: [math.inf] * LENGTHS[6]}
    found.checked(p)
    assert found.open == (rows[1], rows[3], rows[6])
    assert found.next_rows() == found.open
    assert found.left_out == (rows[0], rows[2], rows[4], rows[5])
    # What a step finds later speaks for the open ones alone.
    found.checked(losses(recalled((0, 1, 0.1), (3, 0, 0.1))))
    assert found.open == (rows[3],)
    out = {row.sample: losses(recalled((0, 1, 0.1)))[row.sample] for row in found.left_out}
    found.looked(16, out)
    assert found.open == (rows[0], rows[3]) and not found.done


def test_a_run_is_done_when_a_look_at_everything_finds_all_recalled(
    tiny: Callable[..., BaseModel],
) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(margin=0.8))
    # Between threshold and margin nothing leaves, but nothing trains either.
    found.checked(losses(recalled((2, 1, 0.6))))
    assert found.open == (rows[2],) and found.to_look_at(16) == rows
    found.looked(16, losses(recalled((2, 1, 0.6), (5, 3, 0.4))))
    assert found.open == (rows[2], rows[5]) and not found.done
    found.checked(losses(recalled((5, 3, 0.4))))
    assert found.to_look_at(32) == ()
    found.checked(losses(recalled((2, 1, 0.6))))
    found.looked(48, losses(recalled((2, 1, 0.6))))
    assert found.done


def test_tokens_of_a_single_record_leave(tiny: Callable[..., BaseModel]) -> None:
    run = make_run(2, 9, 40, "memft_rd")
    (member,) = make_members([run], [build_prefix_cache(tiny(), [random_record(9)])])
    found = Redistribution(member, 1, MemftRules(margin=0.8), 2.0)
    p = [0.9, 0.1, 0.9, 0.9, 0.7, 0.9, 0.2, 0.9, 0.9]
    found.checked(losses([p]))
    (row,) = found.open
    # Nothing after the last token to score is computed.
    assert row.scored == (1, 4, 6) and row.length == member.rows[0].length - 2
    # Tokens that are not scored have no new loss; those that are may leave.
    found.checked(losses([[0.1, 0.9, 0.1, 0.1, 0.7, 0.1, 0.9, 0.1, 0.1]]))
    assert found.open[0].scored == (4,)
    assert found.left_out == member.rows
    found.looked(16, losses([[0.9] * 8 + [0.1]]))
    assert found.open[0].scored == (8,) and found.open[0].length == member.rows[0].length


@pytest.mark.parametrize(("equal", "head"), [("gpu_seconds", 2.0), ("tokens", 0.0)])
def test_progress_is_the_work_of_nominal_steps(
    tiny: Callable[..., BaseModel], equal: str, head: float
) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(equal=equal))  # type: ignore[arg-type]
    work = [row.length + head * n for row, n in zip(rows, LENGTHS, strict=True)]
    nominal = sum(work) * 3 / 7
    found.stepped(rows[:2])
    assert found.progress == pytest.approx(sum(work[:2]) / nominal)
    # What is in the batch is known from its steps: that costs nothing.
    found.checked(losses(recalled((0, 1, 0.1), (2, 0, 0.1))))
    assert found.progress == pytest.approx(sum(work[:2]) / nominal)
    out = {row.sample: losses(recalled())[row.sample] for row in found.left_out}
    found.looked(16, out)
    # A look goes forward only: half of a step over the same records.
    left = sum(work[i] for i in (1, 3, 4, 5, 6))
    assert found.progress == pytest.approx((sum(work[:2]) + left / 2) / nominal)
    before = found.progress
    found.stepped(found.next_rows())
    assert found.progress - before == pytest.approx((work[0] + work[2]) / nominal)


def test_what_left_is_looked_at_every_so_many_epochs(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(recheck_epochs=10))
    assert [s for s in range(65) if found.is_due(s)] == [16, 32, 48, 64]
    # Three steps an epoch.
    found.checked(losses(recalled((4, 2, 0.1))))
    left = tuple(row for row in rows if row is not rows[4])
    assert found.to_look_at(16) == () and found.to_look_at(32) == left
    found.looked(32, {row.sample: losses(recalled())[row.sample] for row in left})
    assert found.to_look_at(48) == () and found.to_look_at(64) == left


def test_in_equal_steps_only_steps_count(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(equal="steps"))
    found.stepped(rows[:1])
    found.checked(losses(recalled((1, 0, 0.1))))
    found.looked(16, losses(recalled((1, 0, 0.1))))
    found.stepped(rows[:3])
    assert found.progress == 2.0


def test_every_open_record_has_its_turn(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules())
    seen = [row.sample for _ in range(14) for row in found.next_rows()]
    assert sorted(seen) == sorted(6 * [row.sample for row in rows])
    assert all(sorted(seen[i : i + 7]) == list(range(7)) for i in range(0, 42, 7))


def test_where_nothing_may_leave_it_is_the_threshold_rule(tiny: Callable[..., BaseModel]) -> None:
    base, record = tiny(), random_record(40)
    never = MemftRules(margin=1 - 1e-9)
    runs = [make_run(8, 40, 120, method) for method in ("memft_ot", "memft_rd")]
    of = train(base, runs, [[record], [record]], RECIPE, never).members
    assert of[1].step_losses == pytest.approx(of[0].step_losses, rel=1e-6)


def test_scored_tokens_alone_have_losses(tiny: Callable[..., BaseModel]) -> None:
    """The losses and gradients of a row's scored tokens are those of the whole row's."""
    base = tiny()
    (cached,) = build_prefix_cache(base, [random_record(9)])
    (whole,) = micro_batches([Row(0, 0, cached)])
    (part,) = micro_batches([Row(0, 0, cached.shortened(7), (1, 4, 6))])
    trained = train(base, [make_run(4, 9, 5)], [[random_record(9)]], RECIPE)
    grads = []
    for batch, at in ((whole, [1, 4, 6]), (part, [0, 1, 2])):
        nll = trained.model(batch).nll_N[at]
        trained.model.zero_grad()
        nll.sum().backward()
        grads.append((nll.detach(), trained.model.lora.factors[0].B.grad.clone()))
        laid = batch.lay_out(trained.model(batch).nll_N)
        assert torch.equal(laid != 0, batch.mask_RL)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
