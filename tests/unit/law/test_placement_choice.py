"""Which placement stores a text for least: needed ranks, costs, and how sure their order is."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import AveragedSamples, Placement, average_laws, choose_placement
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, LINEAR, placed_data

WORTHS = {BLOCK: 1.0, DOWN: 2.0, ATTENTION: 1.9, LINEAR: 0.5}
PLACES = tuple(WORTHS)
AT = (512, 200, 6.0)


@pytest.fixture(scope="module")
def samples() -> AveragedSamples:
    data = placed_data(WORTHS, 0, n_texts=1)
    return average_laws(data, ("ceiling",)).sample(60, np.random.default_rng(0))


def needed(samples: AveragedSamples, placement: Placement) -> np.ndarray:
    """The smallest whole rank whose prediction reaches the loss reduction, tried one by one."""
    ranks = np.arange(1.0, 300.0)
    told = samples.at(placement).predict(ranks, AT[0], AT[1])
    return ranks[np.argmax(told >= AT[2] - 1e-9, axis=1)]


def test_needs_are_the_smallest_ranks_that_reach_it(samples: AveragedSamples) -> None:
    found = choose_placement(samples, PLACES, *AT)
    costs = {}
    for need in found.needs:
        ranks = needed(samples, need.placement)
        costs[need.placement] = ranks * need.placement.params_per_rank
        ordered = np.sort(ranks)
        assert need.lora_rank.value == ordered[(ordered.size - 1) // 2]
        assert need.lora_rank.low <= np.quantile(ranks, 0.06)
        assert need.lora_rank.high >= np.quantile(ranks, 0.94)
        assert need.cost.value == need.lora_rank.value * need.placement.params_per_rank
    order = sorted(costs, key=lambda p: float(np.sort(costs[p])[(costs[p].size - 1) // 2]))
    assert [need.placement for need in found.needs] == order
    first, second, third, last = (costs[p] for p in order)
    tie = 0.5 * np.mean(first == second)
    assert found.p_first == pytest.approx(np.mean(first < second) + tie)
    whole = (first <= second) & (second <= third) & (third <= last)
    assert found.p_order == pytest.approx(np.mean(whole))
    best = np.minimum.reduce([first, second, third, last])
    shared = sum(cost == best for cost in (first, second, third, last))
    for need in found.needs:
        share = np.mean((costs[need.placement] == best) / shared)
        assert need.p_best == pytest.approx(share)
    assert {need.placement for need in found.needs[:2]} == {DOWN, ATTENTION}
    assert found.needs[-1].placement == LINEAR


def test_another_cost_orders_anew_and_ranks_out_of_reach_cost_everything(
    samples: AveragedSamples,
) -> None:
    def seconds(placement: Placement, rank: np.ndarray) -> np.ndarray:
        """One placement cannot be had at any rank; of the others the block is by far cheapest."""
        if placement == DOWN:
            return np.full(rank.size, np.inf)
        return np.full(rank.size, 1.0 if placement == BLOCK else 100.0) + 0.001 * rank

    found = choose_placement(samples, PLACES, *AT, cost=seconds)
    assert found.needs[0].placement == BLOCK and found.p_first == 1.0
    assert found.needs[0].p_best == 1.0
    assert found.needs[-1].placement == DOWN and found.needs[-1].cost.value == math.inf
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["placements"][-1]["cost"]["value"] is None


def test_of_two_neighbours_the_likelier_is_first(samples: AveragedSamples) -> None:
    """Where medians say otherwise: one costs little more in most samples, the other now and then
    far more."""
    n = samples.sigma.size
    told = {
        BLOCK: np.full(n, 100.0),
        DOWN: np.where(np.arange(n) < 0.7 * n, 99.0, 101.0),
        ATTENTION: np.where(np.arange(n) % 2, 98.0, 200.0),
        LINEAR: np.full(n, 150.0),
    }
    found = choose_placement(samples, PLACES, *AT, cost=lambda placement, rank: told[placement])
    assert found.p_first >= 0.5
    costs = [told[need.placement] for need in found.needs]
    for first, second in itertools.pairwise(costs):
        assert np.mean(first < second) >= np.mean(second < first)


def test_ranks_far_beyond_those_measured_are_said(samples: AveragedSamples) -> None:
    """Ranks up to 8 were measured: a loss reduction that takes little is near, one that takes
    hundreds of them is far."""
    data = placed_data(WORTHS, 0, n_texts=1)
    near = choose_placement(samples, PLACES, 512, 200, 3.0, measured=data)
    assert not near.far and not any(need.far for need in near.needs)
    assert not choose_placement(samples, PLACES, 512, 200, 11.0).far
    far = choose_placement(samples, PLACES, 512, 200, 11.0, measured=data)
    for need in far.needs:
        own = data.lora_rank[data.placement == data.placements.index(need.placement)]
        beyond = 4 * own.max() < need.lora_rank.value < math.inf
        assert need.far == beyond or need.far
    assert far.to_json()["far"] is far.far is True
    # Longer training than any run had.
    assert choose_placement(samples, PLACES, 512, 2000, 3.0, measured=data).far


def test_what_no_rank_reaches_is_nobodys(samples: AveragedSamples) -> None:
    found = choose_placement(samples, PLACES, 512, 200, 13.0)
    assert all(math.isinf(need.lora_rank.value) for need in found.needs)
    assert found.p_first == 0.5
    assert [need.p_best for need in found.needs] == [0.25] * 4


def test_a_choice_needs_two_and_a_number(samples: AveragedSamples) -> None:
    with pytest.raises(DataError, match="two placements"):
        choose_placement(samples, (BLOCK,), *AT)
    with pytest.raises(DataError, match="finite"):
        choose_placement(samples, PLACES, 512, 200, math.nan)
