"""The design over several placements: coordinates, cost, packs and choices, beside closed forms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.design import (
    RULES,
    Acquisition,
    ChosenRun,
    CostModel,
    DesignSettings,
    DesignSpace,
    DesignState,
    FittedForm,
    History,
    PendingSpend,
    PlaceWork,
    choose_run,
    law_field,
    nearest_cell,
    open_candidates,
    prior_cost,
    prior_cost_of_places,
    why_chosen,
)
from pmlray.design.grid_field import GridField
from pmlray.design.space import log_coordinates
from pmlray.law import LawData, PlacedPoint, Placement, Site, average_laws
from pmlray.types import DesignPoint
from tests.fakes import TRUE_LAW

BLOCK = Placement("block", (Site("mlp_block", 0.7, 100.0),))
HEADS = Placement("heads", (Site("attention", 0.7, 200.0),))
EVERY = Placement("every", tuple(Site("attention", d / 4, 200.0) for d in range(5)))
PLACEMENTS = {"block": BLOCK, "heads": HEADS, "every": EVERY}
RANKS = {"block": (1, 4, 16), "heads": (1, 4), "every": (1, 2)}
CELLS = tuple(
    DesignPoint(r, n, t, name)
    for name, ranks in RANKS.items()
    for r in ranks
    for n in (32, 64, 128)
    for t in (50, 100)
)
SPACE = DesignSpace(CELLS, ((0, 0), (1, 0)), PLACEMENTS)
TARGETS = (DesignPoint(16, 128, 100, "block"), DesignPoint(2, 128, 100, "every"))
# `block` and `heads` share their lowest trained layer.
WORKS = {
    "block": PlaceWork(1.0, 0.0, 20),
    "heads": PlaceWork(1.0, 0.01, 20),
    "every": PlaceWork(3.0, 0.05, 0),
}
COST = CostModel(1e-3, prompt_tokens=0, batch_records=None, decay_share=0.2, places=WORKS)
NAMES = st.sampled_from(sorted(PLACEMENTS))


def state(chosen: tuple[ChosenRun, ...], **of: object) -> DesignState:
    known = DesignState(chosen, (), 12.0, COST, 1e9, placements=PLACEMENTS)
    return replace(known, **of)


@cache
def believed() -> tuple[FittedForm, ...]:
    """Laws fitted to runs at `block` and `heads`; nothing was measured at `every`."""
    rng = np.random.default_rng(0)
    points = [c for c in CELLS if c.placement != "every"][::2]
    r = np.array([p.lora_rank for p in points], dtype=float)
    n, t = (np.array([getattr(p, a) for p in points], float) for a in ("seq_len", "train_steps"))
    at = [PLACEMENTS[str(p.placement)] for p in points]
    worth = r * np.array([placement.params_per_rank / 100.0 for placement in at])
    delta = TRUE_LAW.predict(worth, n, t) + 0.05 * rng.standard_normal(len(points))
    base = np.full(len(points), 12.0)
    data = LawData(r, n, t, delta, base, base - delta, np.arange(len(points)))
    average = average_laws(data.placed(at, beside=tuple(PLACEMENTS.values())), ("ceiling",))
    return tuple(map(FittedForm, average.fits, average.weights))


@pytest.fixture
def beliefs() -> tuple[FittedForm, ...]:
    return believed()


@given(NAMES, NAMES, st.integers(1, 64), st.integers(1, 64))
def test_placements_are_as_far_apart_as_corners_and_ranks_count_by_parameters(
    one: str, other: str, rank: int, another: int
) -> None:
    a, b = DesignPoint(rank, 64, 50, one), DesignPoint(another, 128, 50, other)
    at = log_coordinates([a, b], CELLS, PLACEMENTS)
    params = [p.lora_rank * PLACEMENTS[str(p.placement)].params_per_rank for p in (a, b)]
    # From rank 1 of `block` to rank 2 of `every`, five layers of 200: 100 to 2000 parameters.
    expected = (math.log(params[0] / params[1]) / math.log(20)) ** 2 + 0.5**2
    apart = float(np.linalg.norm(at[0] - at[1]))
    assert apart == pytest.approx(math.sqrt(expected + (0.0 if one == other else 3.0)))


def test_the_nearest_cell_is_of_the_same_placement() -> None:
    point = DesignPoint(3, 100, 70, "heads")
    assert nearest_cell(CELLS, point, CELLS, PLACEMENTS) == DesignPoint(4, 128, 50, "heads")
    others = [cell for cell in CELLS if cell.placement != "heads"]
    assert nearest_cell(others, point, CELLS, PLACEMENTS) in others


def test_work_is_that_of_the_placement() -> None:
    points = [DesignPoint(2, 64, 100, name) for name in PLACEMENTS]
    seconds = [COST.predict(point) for point in points]
    assert seconds == pytest.approx([6.4, 6.4 * 1.02, 6.4 * 3 * 1.1])
    # One rate, measured on runs of all.
    learnt = COST.learn((point, 100, 2 * s) for point, s in zip(points, seconds, strict=True))
    assert [learnt.predict(p) for p in points] == pytest.approx([2 * s for s in seconds])


def test_the_prior_cost_of_each_placement_is_its_own() -> None:
    terms = {"flops": 1e9, "prompt_tokens": 8, "batch_records": None}
    alone = {
        "shallow": prior_cost(1000, 500, rank_weights=0, **terms),
        "deep": prior_cost(9000, 500, rank_weights=70, **terms),
    }
    both = prior_cost_of_places({"shallow": (alone["shallow"], 21), "deep": (alone["deep"], 0)})
    for name, cost in alone.items():
        point = DesignPoint(8, 64, 100)
        assert both.predict(replace(point, placement=name)) == pytest.approx(cost.predict(point))
    assert [both.pack_kind(DesignPoint(1, 8, 8, name)) for name in alone] == [21, 0]


def test_runs_of_different_placements_share_no_trunk() -> None:
    runs = [
        ChosenRun(DesignPoint(4, 64, t, name), (0, 0), False)
        for name in ("block", "heads")
        for t in (50, 100)
    ]
    together = PendingSpend(COST, runs).gpu_seconds
    alone = [PendingSpend(COST, runs[:2]).gpu_seconds, PendingSpend(COST, runs[2:]).gpu_seconds]
    assert together == pytest.approx(sum(alone))
    assert together < sum(COST.predict(run.point) for run in runs)
    (candidate,) = [
        c
        for c in open_candidates(SPACE, state(tuple(runs[:1]), pack=tuple(runs[:1])))
        if c.point == DesignPoint(4, 64, 100, "heads")
    ]
    assert candidate.gpu_seconds == pytest.approx(COST.predict(candidate.point))


def test_a_pack_holds_runs_that_share_their_lowest_trained_layer() -> None:
    for name, kin in (("block", {"block", "heads"}), ("every", {"every"})):
        first = ChosenRun(DesignPoint(1, 32, 50, name), (0, 0), False)
        known = state((first,), pack=(first,))
        assert {c.point.placement for c in open_candidates(SPACE, known)} == kin
        # The initial design is dealt out to packs once it is chosen.
        assert len({c.point.placement for c in open_candidates(SPACE, known, n_initial=2)}) == 3


@pytest.mark.parametrize("budget", [1e9, 400.0, 60.0])
def test_the_initial_design_has_a_run_of_every_placement(budget: float) -> None:
    """Also where a fifth of the budget pays for no run of the dearest."""
    design = DesignSettings(n_initial=3, validation_share=0.0, targets=TARGETS)
    chosen: list[ChosenRun] = []
    for _ in range(3):
        spent = sum(COST.predict(run.point) for run in chosen)
        choice = choose_run(SPACE, design, state(tuple(chosen), budget_left=budget - spent))
        assert choice is not None
        chosen.append(ChosenRun(*choice, False))
    assert {run.point.placement for run in chosen} == set(PLACEMENTS)


def test_space_is_filled_within_each_placement() -> None:
    """Every placement's runs are spread: their two farthest cells come before a third."""
    chosen: list[ChosenRun] = []
    design = DesignSettings(n_initial=6, validation_share=0.0, targets=TARGETS)
    for _ in range(6):
        choice = choose_run(SPACE, design, state(tuple(chosen)))
        assert choice is not None
        chosen.append(ChosenRun(*choice, False))
    of = Counter(run.point.placement for run in chosen)
    assert set(of) == set(PLACEMENTS) and max(of.values()) <= 3
    history = History(chosen, PLACEMENTS)
    at = log_coordinates([run.point for run in chosen], CELLS, PLACEMENTS)
    cells = log_coordinates(CELLS, CELLS, PLACEMENTS)
    nearest = np.linalg.norm(cells[:, None] - at[None], axis=2).min(axis=1)
    assert history.distances(CELLS) == pytest.approx(nearest)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_chooses_an_open_cell_of_a_placement(
    rule: Acquisition, beliefs: tuple[FittedForm, ...]
) -> None:
    design = DesignSettings(1, 0.0, TARGETS, rule, seed=3)
    chosen: list[ChosenRun] = [ChosenRun(CELLS[0], (0, 0), True)]
    for _ in range(8):
        known = state(tuple(chosen), beliefs=beliefs)
        choice = choose_run(SPACE, design, known)
        assert choice is not None and choice[0] in CELLS
        assert why_chosen(SPACE, design, known, *choice)
        chosen.append(ChosenRun(*choice, False))
    assert len(set(chosen)) == 9
    if rule in ("sobol", "lhs", "random", "full_grid"):
        assert len({run.point.placement for run in chosen}) == 3 or rule == "full_grid"


def test_what_tells_an_unmeasured_placement_apart_is_chosen(
    beliefs: tuple[FittedForm, ...],
) -> None:
    """Its own target is the least certain, and a run there informs most, as the field has it."""
    design = DesignSettings(1, 0.0, (DesignPoint(2, 128, 100, "every"),))
    known = state((ChosenRun(CELLS[0], (0, 0), True),), beliefs=beliefs)
    alike = replace(COST, places=dict.fromkeys(PLACEMENTS, WORKS["block"]))
    choice = choose_run(SPACE, design, replace(known, cost=alike))
    assert choice is not None and choice[0].placement == "every"
    assert "at every" in why_chosen(SPACE, design, replace(known, cost=alike), *choice)


@settings(max_examples=25)
@given(st.lists(st.sampled_from([*CELLS, DesignPoint(3, 100, 70, "heads")]), max_size=12))
def test_a_field_over_placements_is_that_of_all_pending_runs(pending: list[DesignPoint]) -> None:
    kept = GridField(believed(), 12.0, CELLS, TARGETS, PLACEMENTS)
    cells, targets, waiting = (
        [PlacedPoint(p, PLACEMENTS[str(p.placement)]) for p in points]
        for points in (CELLS, TARGETS, pending)
    )
    field = law_field(believed(), 12.0).after(waiting)
    counts = Counter(pending)
    assert kept.gains(counts) == pytest.approx(field.gains(cells, targets), rel=1e-5, abs=1e-12)
    assert kept.information(counts) == pytest.approx(field.information(cells), rel=1e-5)
    before, after = kept.at_targets(counts, CELLS[5])
    assert before == pytest.approx(field.variance(targets), rel=1e-5)
    assert after == pytest.approx(field.after(cells[5:6]).variance(targets), rel=1e-5)
