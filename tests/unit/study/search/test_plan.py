"""What a search is said to cost before anything is measured, by where its adapters sit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pmlray.config.prepared_search import PreparedSearch
from pmlray.study.search.plan import first_cost
from pmlray.types import DesignPoint

# Of the tiny model: weights of a layer's projections, and of its head.
LAYER, HEAD = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128, 512 * 64
ALL_LINEAR = 2 * 128 + 2 * 96 + 3 * 192


def seconds(search: PreparedSearch, rank: int) -> float:
    return first_cost(search, False).predict(DesignPoint(rank, 64, 100))


@pytest.mark.parametrize(
    ("adapter", "layers", "per_rank"),
    [
        ("{target_modules: all-linear}", 4, 4 * ALL_LINEAR),
        ("{target_modules: all-linear, layers: {from: 1, to: 2}}", 3, 2 * ALL_LINEAR),
        ("{target_modules: q_proj, layers: [3]}", 1, 128),
        # Added to its layer's output: the layer itself is not trained through, its work is small.
        ("{target_modules: down_proj, layers: [1]}", 2, 0),
        ("{target_modules: mlp_block, layers: [1]}", 2, 0),
        ("{target_modules: mlp_block, layers: [1, 2]}", 3, 2 * 128),
    ],
)
def test_a_step_costs_the_layers_from_the_lowest_adapter_on_and_the_adapters(
    make_search: Callable[..., PreparedSearch], adapter: str, layers: int, per_rank: int
) -> None:
    search = make_search("probe=null", f"adapter={adapter}")
    probe = make_search("probe.layer=3")
    frozen = 4 * (layers * LAYER + HEAD)
    for rank in (1, 16):
        ratio = seconds(search, rank) / seconds(probe, rank)
        assert ratio == pytest.approx((frozen + 6 * per_rank * rank) / (4 * HEAD))


def test_a_measured_rate_is_of_the_work_without_the_adapters(
    make_search: Callable[..., PreparedSearch],
) -> None:
    """So runs of small ranks tell what those of large ones take."""
    cost = first_cost(make_search("probe=null", "adapter={target_modules: all-linear}"), False)
    small, large = DesignPoint(1, 64, 100), DesignPoint(16, 64, 100)
    learnt = cost.learn([(small, 100, 3 * cost.predict(small))])
    assert learnt.predict(small) == pytest.approx(3 * cost.predict(small))
    assert learnt.predict(large) == pytest.approx(3 * cost.predict(large))
    assert learnt.added(large, [50]) > learnt.added(small, [50])
