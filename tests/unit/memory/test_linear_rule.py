"""The rule holds for every pair, and what is held out is never trained on."""

from __future__ import annotations

import re

from pmlray.memory.linear_rule import MAX_TRAINED, N_HELDOUT, heldout_pairs, rule_pairs


def digits(texts: object) -> list[list[int]]:
    return [[0] * len(str(text).strip()) for text in texts]  # type: ignore[attr-defined]


def test_every_answer_follows_the_rule() -> None:
    for query, answer in [*rule_pairs(500, 3, 1), *heldout_pairs(200, 3, digits)]:
        match = re.fullmatch(r"x = (\d+), y = (\d+), z =", query)
        assert match and int(answer) == 3 * int(match[1]) + 5 * int(match[2]) + 7


def test_draws_differ_nest_and_leave_the_held_out_pairs_alone() -> None:
    whole = rule_pairs(MAX_TRAINED, 0, 0)
    assert len(set(whole)) == MAX_TRAINED and whole[:20] == rule_pairs(20, 0, 0)
    assert set(whole) == set(rule_pairs(MAX_TRAINED, 0, 5)) and whole != rule_pairs(
        MAX_TRAINED, 0, 5
    )
    held_out = heldout_pairs(10**6, 0, digits)
    assert len(held_out) == N_HELDOUT and not set(held_out) & set(whole)
    assert set(held_out) != set(heldout_pairs(10**6, 1, digits))
    few = heldout_pairs(10, 0, digits)
    assert few == held_out[: len(few)]
    assert (
        sum(map(len, digits(a for _, a in few)))
        >= 10
        > sum(map(len, digits(a for _, a in few[:-1])))
    )
