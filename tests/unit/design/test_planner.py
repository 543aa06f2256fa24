"""The design against exhaustive search, its budget, and its balance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from pmlray.design import (
    OPTUNA_RULES,
    RULES,
    Acquisition,
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    DesignState,
    DeviceShare,
    FittedForm,
    charged_steps,
    choose_run,
    device_share,
    law_field,
    open_candidates,
    why_chosen,
)
from pmlray.law import LawData, average_laws
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

CELLS = tuple(DesignPoint(r, n, 100) for r in (1, 2, 4, 8) for n in (32, 64, 128, 256))
SPACE = DesignSpace(CELLS, ((0, 0), (1, 0)))
TARGET = (DesignPoint(8, 256, 100),)
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None)


def fitted(points: list[DesignPoint]):
    rng = np.random.default_rng(0)
    r, n, t = np.array([[p.lora_rank, p.seq_len, p.train_steps] for p in points], dtype=float).T
    delta = TRUE_LAW.predict(r, n, t) + 0.05 * rng.standard_normal(len(points))
    base = np.full(len(points), 12.0)
    data = LawData(r, n, t, delta, base, base - delta, np.arange(len(points)))
    return average_laws(data, ("ceiling",)).best


def test_chooses_the_best_gain_per_cost_and_counts_pending() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    beliefs = (FittedForm(fitted(known), 1.0),)
    chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
    settings = DesignSettings(n_initial=6, validation_share=0.0, targets=TARGET)
    field = law_field(beliefs, 12.0)
    for _ in range(5):
        cells = SPACE.open_cells(chosen)
        costs = [COST.predict(c) for c in cells]
        choice = choose_run(SPACE, settings, DesignState(chosen, beliefs, 12.0, COST, 1e9))
        assert choice is not None
        assert choice[0] == cells[int(np.argmax(field.gains(cells, TARGET) / costs))]
        field = field.after([choice[0]])
        chosen = (*chosen, ChosenRun(*choice, done=False))
    assert len(set(chosen)) == len(chosen)


def test_start_spans_the_space_and_replicates_stay_balanced() -> None:
    settings = DesignSettings(n_initial=8, validation_share=0.2, targets=TARGET)
    chosen: tuple[ChosenRun, ...] = ()
    for _ in range(8):
        choice = choose_run(SPACE, settings, DesignState(chosen, (), 12.0, COST, 1e9))
        assert choice is not None
        chosen = (*chosen, ChosenRun(*choice, done=False))
    assert len({c.point for c in chosen}) == 8
    assert {c.point.lora_rank for c in chosen} >= {1, 8}
    assert {c.point.seq_len for c in chosen} >= {32, 256}
    assert [sum(c.replicate == r for c in chosen) for r in SPACE.replicates] == [4, 4]


def test_nothing_beyond_the_budget_or_the_space() -> None:
    settings = DesignSettings(n_initial=2, validation_share=0.2, targets=TARGET)
    too_little = 0.99 * COST.predict(CELLS[0])
    assert choose_run(SPACE, settings, DesignState((), (), 0.0, COST, too_little)) is None
    every = tuple(ChosenRun(c, r, True) for c in CELLS for r in SPACE.replicates)
    assert choose_run(SPACE, settings, DesignState(every, (), 0.0, COST, 1e9)) is None


def test_a_share_of_the_spend_fills_space() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    beliefs = (FittedForm(fitted(known), 1.0),)
    spent = {0.0: 0.0, 0.5: 0.0}
    for share in spent:
        settings = DesignSettings(6, share, TARGET)
        chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
        for _ in range(12):
            knowledge = DesignState(chosen, beliefs, 12.0, COST, 1e9)
            choice = choose_run(SPACE, settings, knowledge)
            assert choice is not None
            field = law_field(beliefs, 12.0).after([c.point for c in chosen[6:]])
            costs = [COST.predict(c) for c in CELLS]
            open_cells = SPACE.open_cells(chosen)
            telling = max(
                open_cells,
                key=lambda c: (field.gains(CELLS, TARGET) / costs)[CELLS.index(c)],
            )
            if choice[0] != telling:
                spent[share] += COST.predict(choice[0])
            chosen = (*chosen, ChosenRun(*choice, done=False))
        total = sum(COST.predict(run.point) for run in chosen)
        start = sum(COST.predict(p) for p in known)
        dearest = max(COST.predict(c) for c in CELLS)
        # A run that is both counts for neither here, so this bounds the share from below.
        assert spent[share] + start >= share * total - dearest
    assert spent[0.0] == 0.0 < spent[0.5]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_keeps_to_the_grid_the_budget_and_its_history(rule: str) -> None:
    settings = DesignSettings(4, 0.2, TARGET, rule, seed=3)  # type: ignore[arg-type]
    beliefs = (FittedForm(fitted(list(CELLS)), 1.0),)
    histories = []
    for _ in range(2):
        chosen: tuple[ChosenRun, ...] = ()
        left = 0.5 * 2 * sum(COST.predict(c) for c in CELLS)
        while (
            choice := choose_run(SPACE, settings, DesignState(chosen, beliefs, 12.0, COST, left))
        ) is not None:
            left -= COST.predict(choice[0])
            chosen = (*chosen, ChosenRun(*choice, done=True))
        assert left >= 0 and len(set(chosen)) == len(chosen) > 8
        histories.append(chosen)
    assert histories[0] == histories[1]


def test_plain_rules_do_what_they_say() -> None:
    def order(rule: str, n: int) -> list[DesignPoint]:
        settings = DesignSettings(4, 0.2, TARGET, rule)  # type: ignore[arg-type]
        chosen: tuple[ChosenRun, ...] = ()
        for _ in range(n):
            choice = choose_run(SPACE, settings, DesignState(chosen, (), 12.0, COST, 1e9))
            assert choice is not None
            chosen = (*chosen, ChosenRun(*choice, done=True))
        return [run.point for run in chosen]

    assert order("full_grid", 32) == [*CELLS, *CELLS]
    assert [c.seq_len for c in order("cheapest_first", 16)] == sorted(c.seq_len for c in CELLS)
    # Low discrepancy: 16 of 16 cells would be chance; every rank and length must turn up early.
    early = order("sobol", 8)
    assert {c.lora_rank for c in early} == {1, 2, 4, 8}
    assert len({c.seq_len for c in early}) >= 3


def test_every_rule_is_ours_or_optunas() -> None:
    assert set(RULES).isdisjoint(OPTUNA_RULES)
    assert set(RULES) | OPTUNA_RULES == set(get_args(Acquisition))


@pytest.mark.parametrize("seed", range(5))
def test_latin_hypercubes_meet_every_value_equally_often(seed: int) -> None:
    """Four ranks and lengths, two budgets: a hypercube has 4 points (the definition, counted)."""
    cells = tuple(DesignPoint(r, n, t) for r in (1, 2, 4, 64) for n in (32, 48, 64, 1024)
                  for t in (100, 400))  # fmt: skip
    space = DesignSpace(cells, tuple((sequence, 0) for sequence in range(4)))
    settings = DesignSettings(4, 0.2, TARGET, "lhs", seed)
    chosen: tuple[ChosenRun, ...] = ()
    for _ in range(12):
        choice = choose_run(space, settings, DesignState(chosen, (), 12.0, COST, 1e9))
        assert choice is not None
        chosen = (*chosen, ChosenRun(*choice, done=True))
    hypercubes = [[run.point for run in chosen[i : i + 4]] for i in (0, 4, 8)]
    for points in hypercubes:
        assert sorted(p.lora_rank for p in points) == [1, 2, 4, 64]
        assert sorted(p.seq_len for p in points) == [32, 48, 64, 1024]
        assert sorted(p.train_steps for p in points) == [100, 100, 400, 400]
    assert hypercubes[0] != hypercubes[1] != hypercubes[2]


def test_a_pack_prefers_budgets_that_share_a_trunk() -> None:
    """Two runs that tell equally much: the one whose trunk is there already is chosen."""
    cells = tuple(DesignPoint(r, n, t) for r in (1, 4) for n in (64, 256) for t in (100, 200))
    space = DesignSpace(cells, ((0, 0), (1, 0)))
    cost = CostModel(1e-3, prompt_tokens=0, batch_records=None, decay_share=0.2)
    running = ChosenRun(DesignPoint(4, 256, 200), (1, 0), done=False)
    known = DesignState((running,), (), 12.0, cost, 1e9, pack=(running,))
    found = {candidate.point: candidate for candidate in open_candidates(space, known)}
    shared = found[DesignPoint(4, 256, 100)]
    assert shared.replicate == (1, 0)
    assert shared.gpu_seconds == pytest.approx(0.2 * 100 * 256 * 1e-3)
    assert found[DesignPoint(4, 64, 100)].replicate == (0, 0)
    alone = DesignState((running,), (), 12.0, cost, 1e9)
    assert {o.point: o for o in open_candidates(space, alone)}[
        DesignPoint(4, 256, 100)
    ].replicate == (0, 0)


def test_no_run_outlasts_what_all_devices_have_before_them() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    beliefs = (FittedForm(fitted(known), 1.0),)
    chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
    settings = DesignSettings(n_initial=6, validation_share=0.0, targets=TARGET)
    knowledge = DesignState(chosen, beliefs, 12.0, COST, 60.0, training=40.0)
    assert device_share(knowledge, 1) == DeviceShare(math.inf, math.inf)
    share = device_share(knowledge, 8)
    assert share == DeviceShare(60 / 16, (60 + 40 / 2) / 8) and share.room(knowledge) == share.run
    in_pack = replace(knowledge, pack=(ChosenRun(CELLS[0], (1, 0), False),))
    assert share.room(in_pack) == share.pack - COST.predict(CELLS[0])
    seconds = {COST.predict(cell) for cell in CELLS}
    field = law_field(beliefs, 12.0)
    for longest in (math.inf, *seconds, 0.9 * min(seconds)):
        choice = choose_run(SPACE, settings, knowledge, longest)
        # Of those that end in time the best; where none does, the first of the shortest.
        allowed = [c for c in CELLS if COST.predict(c) <= longest] or [CELLS[0]]
        gains = field.gains(allowed, TARGET) / [COST.predict(c) for c in allowed]
        assert choice is not None and choice[0] == allowed[int(np.argmax(gains))]
    # A rule that weighs no cost goes its own way.
    grid = replace(settings, acquisition="full_grid")
    assert choose_run(SPACE, grid, knowledge, 0.0) == choose_run(SPACE, grid, knowledge)


def test_a_family_of_budgets_pays_what_the_engine_charges() -> None:
    """By hand, as the engine's own test: steps 0 to 5 serve three, 6 to 14 two."""
    paid = charged_steps((8, 40, 20), 0.25)
    assert paid == pytest.approx((6 / 3 + 2, 6 / 3 + 9 / 2 + 25, 6 / 3 + 9 / 2 + 5))
    assert charged_steps((8, 40, 20), None) == (8.0, 40.0, 20.0)
    # Without a decay only the last step is a run's own.
    assert charged_steps((8, 40), 0.0) == pytest.approx((7 / 2 + 1, 7 / 2 + 33))
    cost = CostModel(1.0, prompt_tokens=0, batch_records=None, decay_share=0.25)
    one_token = [DesignPoint(1, 1, t) for t in (8, 40, 20)]
    added = [cost.added(p, [q.train_steps for q in one_token[:i]]) for i, p in enumerate(one_token)]
    assert sum(added) == pytest.approx(sum(paid))


@pytest.mark.parametrize("decay_share", [None, 0.2])
def test_offers_are_the_cheapest_of_the_replicates_that_are_allowed(
    decay_share: float | None,
) -> None:
    """Every run of the grid tried in turn: the balanced replicate, or a cheaper one in the pack."""
    cells = tuple(DesignPoint(r, n, t) for r in (1, 4) for n in (64, 256) for t in (50, 100, 200))
    space = DesignSpace(cells, ((0, 0), (1, 0), (2, 0)))
    cost = CostModel(1e-3, prompt_tokens=0, batch_records=None, decay_share=decay_share)
    rng = np.random.default_rng(5)
    every = [ChosenRun(c, r, False) for c in cells for r in space.replicates]
    for n in (0, 3, 12, 30, 36):
        chosen = tuple(every[i] for i in rng.permutation(len(every))[:n])
        pack = chosen[len(chosen) // 2 :]
        uses = [sum(run.replicate == r for run in chosen) for r in space.replicates]
        expected = []
        for cell in cells:
            free = [r for r in space.replicates if ChosenRun(cell, r, False) not in chosen]
            prices = {}
            for replicate in sorted(free, key=lambda r: uses[space.replicates.index(r)]):
                trunk = [
                    run.point.train_steps
                    for run in pack
                    if run.replicate == replicate
                    and (run.point.lora_rank, run.point.seq_len) == (cell.lora_rank, cell.seq_len)
                ]
                prices[replicate] = cost.added(cell, trunk)
            if prices and min(prices.values()) <= 30.0:
                expected.append((cell, min(prices.values())))
        found = list(open_candidates(space, DesignState(chosen, (), 12.0, cost, 30.0, pack=pack)))
        assert [(o.point, o.gpu_seconds) for o in found] == expected
        assert all(ChosenRun(o.point, o.replicate, False) not in chosen for o in found)


def test_the_reason_for_a_run_is_what_the_rule_looked_at() -> None:
    known = [CELLS[i] for i in (0, 3, 5, 10, 12, 15)]
    beliefs = (FittedForm(fitted(known), 1.0),)
    chosen = tuple(ChosenRun(p, (0, 0), True) for p in known)
    settings = DesignSettings(n_initial=6, validation_share=0.0, targets=TARGET)
    knowledge = DesignState(chosen, beliefs, 12.0, COST, 1e9)
    choice = choose_run(SPACE, settings, knowledge)
    assert choice is not None
    point, replicate = choice
    field = law_field(beliefs, 12.0)
    before, after = (math.sqrt(f.variance(TARGET)[0]) for f in (field, field.after([point])))
    value = (before**2 - after**2) / COST.predict(point)
    assert why_chosen(SPACE, settings, knowledge, point, replicate) == (
        f"v_optimal: {value:.2g} nats^2 of variance per gpu_second, sharpens rank 8 x 256 tokens"
        f" +-{before:.2g} -> {after:.2g}"
    )
    start = DesignState(chosen[:3], (), 12.0, COST, 1e9)
    assert why_chosen(SPACE, settings, start, point, replicate) == "initial design"
    filling = replace(settings, n_initial=3, validation_share=1.0)
    assert why_chosen(SPACE, filling, knowledge, point, replicate).startswith("checks the law")
    other = replace(settings, acquisition="sobol")
    assert why_chosen(SPACE, other, knowledge, point, replicate) == "rule sobol"
