"""Where adapters sit: what a name says, and the order of placements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law import LawData, Placement, Site, in_order, named_placement, placement_at
from tests.unit.law.placed_points import ATTENTION, BLOCK, DOWN, placed_data


@pytest.mark.parametrize(
    ("name", "kinds", "depths"),
    [
        ("down_proj@20/30", {"mlp_out": 1.0}, {20 / 29}),
        ("q_proj,v_proj of layer 20 of 30", {"attention": 1.0}, {20 / 29}),
        ("q_proj+down_proj layers 0, 29 of 30", {"attention": 0.5, "mlp_out": 0.5}, {0.0, 1.0}),
        ("q, v and down", {"attention": 2 / 3, "mlp_out": 1 / 3}, {None}),
        ("all-linear", {"attention": 4 / 7, "mlp_in": 2 / 7, "mlp_out": 1 / 7}, {None}),
        ("MLP_block of layer 20", {"mlp_block": 1.0}, {None}),
        ("mlp.down_proj,self_attn.q_proj", {"attention": 0.5, "mlp_out": 0.5}, {None}),
        ("o_proj in every layer", {"attention": 1.0}, {0.0, 0.25, 0.5, 0.75, 1.0}),
    ],
)
def test_a_plain_name_says_kinds_and_depths(
    name: str, kinds: dict[str, float], depths: set[float | None]
) -> None:
    found = named_placement(name, 700.0)
    shares: dict[str, float] = {}
    for site in found.sites:
        shares[site.kind] = shares.get(site.kind, 0.0) + site.params_per_rank / 700.0
    assert shares == pytest.approx(kinds)
    assert {site.depth for site in found.sites} == depths
    assert found.params_per_rank == pytest.approx(700.0) and found.name == name


@pytest.mark.parametrize(
    "name",
    [
        *("ours v2", "the best down_proj", "run 3", "down_proj@31/30", "c_proj", ""),
        f"down_proj@{'9' * 5000}/30",
    ],
)
def test_a_name_that_is_not_all_understood_says_nothing(name: str) -> None:
    assert named_placement(name, 5.0) == Placement(name, (Site("other", None, 5.0),))


def test_the_reference_is_the_papers_block_else_the_place_with_most_points() -> None:
    beside_mlp = named_placement("mlp@20/30", 1152.0)
    assert in_order([DOWN, DOWN, BLOCK, beside_mlp]) == (beside_mlp, DOWN, BLOCK)
    assert in_order([DOWN, ATTENTION, ATTENTION]) == (ATTENTION, DOWN)
    assert in_order([]) == ()
    assert in_order([DOWN, ATTENTION], [BLOCK, DOWN]) == (DOWN, ATTENTION, BLOCK)
    with pytest.raises(DataError, match="two placements have the name 'down'"):
        in_order([DOWN, Placement("down", ATTENTION.sites)])


def test_known_modules_make_sites_by_kind_and_depth() -> None:
    modules = [(layer, name, n) for layer in (0, 3) for name, n in (
        ("self_attn.q_proj", 10.0), ("self_attn.v_proj", 6.0), ("mlp.down_proj", 20.0),
        ("mlp", 8.0), ("router", 2.0))]  # fmt: skip
    found = placement_at("here", modules, n_layers=4)
    assert found == Placement("here", tuple(
        Site(kind, depth, n) for depth in (0.0, 1.0) for kind, n in (
            ("attention", 16.0), ("mlp_out", 20.0), ("mlp_block", 8.0), ("other", 2.0))
    ))  # fmt: skip
    # The only layer of a base is its first.
    assert placement_at("tiny", [(0, "mlp", 8.0)], n_layers=1).is_one_mlp_block


@pytest.mark.parametrize(
    "sites",
    [(), (Site("mlp_in", 0.5, 0.0),), (Site("mlp_in", 1.5, 2.0),), (Site("mlp_in", -0.1, 2.0),)],
)
def test_a_placement_that_cannot_be_is_refused(sites: tuple[Site, ...]) -> None:
    with pytest.raises(DataError, match="'odd'"):
        Placement("odd", sites)


def test_cells_and_plain_ranks_tell_placements_apart() -> None:
    data = placed_data({BLOCK: 1.0, DOWN: 1.0}, 0)
    assert len(set(data.cells().tolist())) == 8
    down = data.placement == 1
    # down_proj has a third of the block's parameters.
    assert data.plain_rank[down] == pytest.approx(data.lora_rank[down] / 3)
    assert data.plain_rank[~down] == pytest.approx(data.lora_rank[~down])
    assert data.subset(down).placements == (BLOCK, DOWN)
    again = data.subset(down).placed([DOWN] * int(down.sum()), beside=[BLOCK])
    assert again.placements == (DOWN, BLOCK) and np.all(again.placement == 0)
    with pytest.raises(DataError, match="placement"):
        LawData(
            *(getattr(data, n) for n in ("lora_rank", "seq_len", "train_steps", "delta_loss")),
            data.base_loss,
            data.final_loss,
            data.cluster,
            data.placement,
            (BLOCK,),
        )
    with pytest.raises(DataError, match="must say which"):
        replace(data, placement=None)
