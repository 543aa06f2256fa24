"""Stubborn tokens: planted ones are found and told apart, chance is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from pmlray.study.findings.stubborn_tokens import families, holm, id_tallies, token_tallies
from pmlray.types import DesignPoint, Observation, Recall
from tests.unit.study.conftest import make_observation

SHARES = (0.0, 0.0, 0.01, 0.02, 0.04, 0.1, 0.3, 0.6, 0.9)
Draw = Callable[[np.random.Generator, int, float], np.ndarray]


def by_chance(rng: np.random.Generator, length: int, share: float) -> np.ndarray:
    """Every token is as likely to fail as any other."""
    failed = np.zeros(length, dtype=bool)
    failed[rng.choice(length, round(share * length), replace=False)] = True
    return failed


def run_of(point: DesignPoint, sequence_id: int, failed: np.ndarray, seed: int = 0) -> Observation:
    base = make_observation(point, sequence_id, 0, np.random.default_rng(0))
    wrong = tuple(np.flatnonzero(failed)[::2].tolist())
    recall = Recall(1 - len(wrong) / failed.size, 0.0, 0.0, int(failed.sum()))
    key = f"{point.lora_rank}-{point.seq_len}-{point.train_steps}-{sequence_id}-{seed}"
    token_p = tuple(np.where(failed, 0.4, 0.9).tolist())
    return replace(base, run_key=key, seed=seed, recall=recall, token_p=token_p, wrong_tokens=wrong)


def world(rng: np.random.Generator, draw: Draw = by_chance) -> list[Observation]:
    """Runs of two sequences at two nested lengths, from those that fail nothing to nearly all."""
    return [
        run_of(DesignPoint(rank, length, 100), q, draw(rng, length, share), seed)
        for seed in (0, 1)
        for q in (0, 1)
        for length in (60, 120)
        for rank, share in enumerate(SHARES, start=1)
    ]


def planted(rng: np.random.Generator, length: int, share: float) -> np.ndarray:
    """Token 7 always fails; token 11 fails as soon as anything does by lack of capacity."""
    failed = by_chance(rng, length, share)
    failed[7], failed[11] = True, share >= 0.04
    return failed


def test_planted_tokens_are_found_and_told_apart() -> None:
    found = token_tallies(world(np.random.default_rng(0), planted))
    assert len(found) == 240
    suspects = {(t.sequence_id, t.position): t.verdict for t in found if t.verdict != "capacity"}
    assert suspects == {(q, i): v for q in (0, 1) for i, v in ((7, "pathology"), (11, "hard"))}
    assert [t.verdict for t in found[:4]] == ["pathology", "pathology", "hard", "hard"]
    stuck = found[0]
    assert stuck.failed == stuck.runs == 36 and stuck.recalling_failed == stuck.recalling


def test_counts_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    runs = world(rng)
    for tally in token_tallies(runs)[::17]:
        here = [o for o in runs if o.sequence_id == tally.sequence_id]
        here = [o for o in here if len(o.token_p) > tally.position]
        assert tally.runs == tally.families == len(here)
        assert tally.failed == sum(o.token_p[tally.position] <= 0.5 for o in here)
        assert tally.wrong == sum(tally.position in o.wrong_tokens for o in here)
        shares = [sum(p <= 0.5 for p in o.token_p) / len(o.token_p) for o in here]
        assert tally.expected == pytest.approx(sum(shares))
        assert tally.recalling == sum(share <= 0.05 for share in shares)


def test_p_value_is_the_sum_over_all_outcomes() -> None:
    rng, length = np.random.default_rng(5), 20
    shares = (0.1, 0.25, 0.5, 0.7)
    runs = [
        run_of(DesignPoint(rank, length, 100), 0, by_chance(rng, length, share))
        for rank, share in enumerate(shares, start=1)
    ]
    exact = {
        n: sum(
            np.prod([s if hit else 1 - s for s, hit in zip(shares, hits, strict=True)])
            for hits in itertools.product((0, 1), repeat=len(shares))
            if sum(hits) >= n
        )
        for n in range(len(shares) + 1)
    }
    for tally in token_tallies(runs):
        assert tally.p_value == pytest.approx(exact[tally.failed])


def test_budgets_of_one_run_count_once_in_a_test() -> None:
    rng = np.random.default_rng(1)
    runs = [
        run_of(DesignPoint(rank, 40, steps), 0, by_chance(rng, 40, 0.3))
        for rank in (1, 2)
        for steps in (50, 200, 100)
    ]
    assert [o.point.train_steps for o in families(runs)] == [200, 200]
    for tally in token_tallies(runs):
        assert (tally.runs, tally.families) == (6, 2)
        assert tally.expected == pytest.approx(0.6)


def test_ids_are_pooled_over_places() -> None:
    """The p-value is the share of random redistributions that fail the id as often or more."""
    rng, length = np.random.default_rng(2), 30
    runs = [
        run_of(DesignPoint(rank, length, 100), 0, by_chance(rng, length, share))
        for rank, share in enumerate((0.2, 0.5, 0.8), start=1)
    ]
    ids: Mapping[int, tuple[int, ...]] = {0: (*(i % 5 for i in range(29)), 99)}
    found = {t.token_id: t for t in id_tallies(runs, ids)}
    assert set(found) == {0, 1, 2, 3, 4}
    draws = np.stack(
        [
            [by_chance(rng, length, share)[0:29:5].sum() for _ in range(4000)]
            for share in (0.2, 0.5, 0.8)
        ]
    ).sum(axis=0)
    tally = found[0]
    assert (tally.places, tally.tokens) == (6, 18)
    assert tally.expected == pytest.approx(9.0)
    assert tally.p_value == pytest.approx(float(np.mean(draws >= tally.failed)), abs=0.03)


def test_holm_is_the_step_down_loop() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    expected, highest = {}, 0.0
    for rank, i in enumerate(sorted(range(5), key=lambda i: p[i])):
        highest = max(highest, min(1.0, p[i] * (5 - rank)))
        expected[i] = highest
    assert holm(p) == pytest.approx([expected[i] for i in range(5)])
    assert holm([]) == ()
