"""Records that an epoch shows several times, as `keep_duplicates` asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pmlray.config import Recipe
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.scheduling.members import make_members
from pmlray.engine.scheduling.redistribution import Redistribution
from pmlray.memory import Record
from pmlray.types import MemftRules, Method
from tests.unit.engine.conftest import make_run, random_record, train

LENGTHS, REPEATS = (4, 6, 5), (1, 3, 2)


def repeated() -> list[Record]:
    return [
        replace(random_record(length, i), repeats=n)
        for i, (length, n) in enumerate(zip(LENGTHS, REPEATS, strict=True))
    ]


def written_out() -> list[Record]:
    """The same records, each as often as it is shown, as a set without repeats."""
    return [replace(r, repeats=1) for r in repeated() for _ in range(r.repeats)]


@pytest.mark.parametrize("batch_size", [2, 4, 6, 8])
@pytest.mark.parametrize("method", ["sft", "memft_ot", "memft_rd"])
def test_it_trains_as_on_the_repeated_rows_and_counts_each_record_once(
    tiny: Callable[..., BaseModel], method: Method, batch_size: int
) -> None:
    recipe = Recipe(learning_rate=3e-3, batch_size=batch_size)
    run = make_run(2, sum(LENGTHS), 12, method, seed=3)
    found = train(tiny(), [run], [repeated()], recipe)
    wanted = train(tiny(), [run], [written_out()], recipe)
    pairs = (trained.model.lora.weights(0).values() for trained in (found, wanted))
    ((own,), (other,)) = pairs
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    mine, theirs = found.members[0], wanted.members[0]
    assert tuple(map(len, mine.scores.nll)) == LENGTHS
    torch.testing.assert_close(
        torch.tensor(mine.scores.nll[1]), torch.tensor(theirs.scores.nll[1]), rtol=1e-3, atol=1e-5
    )
    once = [theirs.scores.nll[i] for i in (0, 1, 4)]
    assert mine.scores.mean_nll == pytest.approx(sum(map(sum, once)) / sum(LENGTHS), rel=1e-3)
    # Every loss of the curve is of each record once, whatever a step shows.
    single = [replace(record, repeats=1) for record in repeated()]
    alone = train(tiny(), [run], [single], recipe).members[0]
    assert mine.curve[0][1] == pytest.approx(alone.curve[0][1], rel=1e-5)
    assert mine.curve[0][1] != pytest.approx(theirs.curve[0][1], rel=1e-3)


def test_the_growing_set_shows_each_record_as_often(tiny: Callable[..., BaseModel]) -> None:
    run, rules = make_run(2, sum(LENGTHS), 60, "memft_sw", seed=3), MemftRules(temporal=True)
    cached = build_prefix_cache(tiny(), repeated())
    (member,) = make_members([run], [cached], [REPEATS])
    assert member.grows(rules)
    shown = Counter(row.sample for step in range(57, 60) for row in member.rows_at(step, 2, rules))
    assert [shown[i] for i in range(3)] == list(REPEATS)


def test_what_is_left_of_a_redistributed_run_keeps_its_repeats(
    tiny: Callable[..., BaseModel],
) -> None:
    run = make_run(2, sum(LENGTHS), 40, "memft_rd")
    (member,) = make_members([run], [build_prefix_cache(tiny(), repeated())], [REPEATS])
    found = Redistribution(member, 8, MemftRules(margin=0.8), 2.0)
    found.checked({0: [9.0] * 4, 1: [9.0] * 6, 2: [0.01] * 5})
    assert Counter(row.sample for row in found.next_rows()) == {0: 1, 1: 3}
