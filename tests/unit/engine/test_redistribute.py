"""`memft_rd`: what leaves the batch, what that saves, and that else it is memft_ot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.base_model import BaseModel
from pmlray.engine.batches import Row, micro_batches
from pmlray.engine.members import make_members
from pmlray.engine.prefix_cache import build_prefix_cache
from pmlray.engine.redistribute import Redistribution
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


def test_what_is_recalled_leaves_and_comes_back(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(margin=0.8))
    assert found.open == rows and not found.done
    p = [[0.9] * n for n in LENGTHS]
    p[1][2], p[3][0], p[3][6] = 0.79, 0.1, 0.5
    found.looked(losses(p))
    assert [(row.sample, row.scored) for row in found.open] == [(1, (2,)), (3, (0, 6))]
    # Nothing after the last token to score is computed.
    assert [row.length for row in found.open] == [rows[1].length - 3, rows[3].length]
    assert found.next_rows() == found.open
    p[1][2], p[5][5] = 0.95, 0.2
    found.looked(losses(p))
    assert [(row.sample, row.scored) for row in found.open] == [(3, (0, 6)), (5, (5,))]
    found.looked(losses([[0.9] * n for n in LENGTHS]))
    assert found.done


@pytest.mark.parametrize(("equal", "head"), [("gpu_seconds", 2.0), ("tokens", 0.0)])
def test_progress_is_the_work_of_nominal_steps(
    tiny: Callable[..., BaseModel], equal: str, head: float
) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(equal=equal))  # type: ignore[arg-type]
    work = [row.length + head * n for row, n in zip(rows, LENGTHS, strict=True)]
    nominal = sum(work) * 3 / 7
    found.stepped(rows[:2])
    assert found.progress == pytest.approx(sum(work[:2]) / nominal)
    # A look goes forward only: half of a step over the same records.
    found.looked(losses([[0.1] * n if i else [0.9, 0.2, 0.9, 0.9] for i, n in enumerate(LENGTHS)]))
    # What is wholly in the batch is known from its steps: that look was free.
    assert found.progress == pytest.approx(sum(work[:2]) / nominal)
    assert [row.sample for row in found.left_out] == [0]
    found.looked(losses([[0.9] * n if i else [0.9, 0.2, 0.9, 0.9] for i, n in enumerate(LENGTHS)]))
    assert found.progress == pytest.approx((sum(work[:2]) + work[0] / 2) / nominal)
    assert found.left_out == rows
    before = found.progress
    found.stepped(found.next_rows())
    assert found.progress - before == pytest.approx((rows[0].length - 2 + head) / nominal)


def test_in_equal_steps_only_steps_count(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules(equal="steps"))
    found.stepped(rows[:1])
    found.looked(losses([[0.9] * n for n in LENGTHS]))
    found.stepped(rows[:3])
    assert found.progress == 2.0


def test_every_open_record_has_its_turn(tiny: Callable[..., BaseModel]) -> None:
    found, rows = make_redistribution(tiny(), MemftRules())
    seen = [row.sample for _ in range(14) for row in found.next_rows()]
    assert sorted(seen) == sorted(6 * [row.sample for row in rows])
    assert all(sorted(seen[i : i + 7]) == list(range(7)) for i in range(0, 42, 7))


def test_with_nothing_left_out_it_is_memft_ot(tiny: Callable[..., BaseModel]) -> None:
    base, record = tiny(), random_record(40)
    never = MemftRules(recheck_steps=1000, margin=0.5)
    runs = [make_run(2, 40, 60, method) for method in ("memft_ot", "memft_rd")]
    of = train(base, runs, [[record], [record]], RECIPE, never).members
    assert of[1].step_losses == pytest.approx(of[0].step_losses, rel=1e-6)


def test_freed_steps_go_to_the_others_at_equal_work(tiny: Callable[..., BaseModel]) -> None:
    """Packed and alone alike; the run goes on for more steps than its budget names, and ends at
    once when nothing is left."""
    base = tiny()
    rules = MemftRules(margin=0.6)
    runs = [make_run(16, 24, 200, "memft_rd"), make_run(1, 24, 60, "sft"),
            make_run(16, 8, 400, "memft_rd")]  # fmt: skip
    records = [[random_record(run.point.seq_len)] for run in runs]
    together = train(base, runs, records, RECIPE, rules).members
    for i, run in enumerate(runs):
        alone = train(base, [run], [records[i]], RECIPE, rules).members[0]
        # Later on, a token that rounds to the other side of a threshold may tell them apart.
        assert together[i].step_losses[:60] == pytest.approx(alone.step_losses[:60], rel=1e-4), run
    assert len(together[0].step_losses) > 200 and len(together[1].step_losses) == 60
    assert len(together[2].step_losses) < 200 and together[2].scores.recall.exact == 1.0
    assert min(together[2].scores.token_p) > 0.6


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
        grads.append((nll.detach(), trained.model.lora.B.grad.clone()))
        laid = batch.lay_out(trained.model(batch).nll_N)
        assert torch.equal(laid != 0, batch.mask_RL)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
