"""Several named placements of a search: what `space.placement` takes, means and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import SpecError
from pmlray.rebuild import rebuild
from pmlray.types import DesignPoint

PLACEMENTS = (
    "everywhere: {target_modules: all-linear, lora_rank: [1, 2]}",
    "attention: {target_modules: [q_proj, v_proj]}",
    "block: {target_modules: mlp_block, layers: [3]}",
)
COMPARISON = Path(__file__).parents[3] / "searches" / "comparisons" / "smoke.yaml"
Make = Callable[..., PreparedSearch]


def test_every_placement_has_its_own_ranks_or_those_of_the_space(make_placed_search: Make) -> None:
    search = make_placed_search(*PLACEMENTS)
    ranks = {
        name: sorted({p.lora_rank for p in search.spec.space.points() if p.placement == name})
        for name in search.spec.space.placements
    }
    assert ranks == {"everywhere": [1, 2], "attention": [1, 4], "block": [1, 4]}
    assert search.spec.space.n_points == len(search.spec.space.points()) == 6 * 2


def test_each_point_has_the_sites_of_its_placement(make_placed_search: Make) -> None:
    search = make_placed_search(*PLACEMENTS)
    # Of the tiny model: hidden width 64, keys and values 32 wide, 4 layers.
    attention = DesignPoint(4, 8, 10, "attention")
    assert search.params_per_rank_of(attention) == 4 * (128 + 96)
    assert search.placement_of(attention).modules == ("self_attn.q_proj", "self_attn.v_proj")
    assert search.placement_of(DesignPoint(4, 8, 10, "block")).layers == (3,)
    assert search.params_per_rank_of(DesignPoint(4, 8, 10, "block")) == 128
    with pytest.raises(SpecError, match=r"no placement named None; it has everywhere, attention"):
        search.placement_of(DesignPoint(4, 8, 10))
    with pytest.raises(SpecError, match="has several placements, and this needs a search with one"):
        _ = search.placement


def test_targets_are_of_every_placement_unless_they_name_some(make_placed_search: Make) -> None:
    whole = make_placed_search(*PLACEMENTS)
    assert whole.spec.target_points() == (
        DesignPoint(2, 16, 10, "everywhere"),
        DesignPoint(4, 16, 10, "attention"),
        DesignPoint(4, 16, 10, "block"),
    )
    targets = "design.targets={lora_rank: [2], seq_len: [32]}"
    asked = make_placed_search(*PLACEMENTS, overrides=(targets,)).spec.target_points()
    assert [p.placement for p in asked] == ["everywhere", "attention", "block"]
    one = targets.replace("}", ", placement: [block]}")
    assert make_placed_search(*PLACEMENTS, overrides=(one,)).spec.target_points() == (
        DesignPoint(2, 32, 10, "block"),
    )


def test_a_run_is_the_same_whatever_its_placement_is_called(make_placed_search: Make) -> None:
    def run_key(search: PreparedSearch, name: str | None) -> str:
        return search.plan_run(DesignPoint(4, 8, 10, name), "sft", 0, 0, "law").run_key

    first = make_placed_search(*PLACEMENTS)
    keys = {run_key(first, name) for name in ("attention", "block", "everywhere")}
    assert len(keys) == 3
    other = make_placed_search("qv: {target_modules: [v_proj, q_proj], alpha: 1.0r}")
    assert run_key(other, "qv") == run_key(first, "attention")
    assert other.spec.search_id != first.spec.search_id
    alone = make_placed_search(
        overrides=("space.placement=null", "adapter={target_modules: [q_proj, v_proj]}")
    )
    assert run_key(alone, None) == run_key(first, "attention")


@pytest.mark.parametrize(
    ("placements", "overrides", "said"),
    [
        (
            ("a: {target_modules: nothing}",),
            (),
            r"unit.yaml:\d+: space.placement.a.target_modules: the base's layers have no nothing",
        ),
        (
            ("a: {target_modules: q_proj, layers: [4]}",),
            (),
            r"unit.yaml:\d+: space.placement.a.layers names layer 4, but the base has layers 0",
        ),
        (
            ("a: {target_modules: q_proj, layers: {from: 3, to: 1}}",),
            (),
            r"unit.yaml:\d+: layers goes from 3 down to 1",
        ),
        (
            ("a: {target_modules: q_proj}", "b: {target_modules: [q_proj], layers: [0, 1, 2, 3]}"),
            (),
            "space.placement.b is where space.placement.a is, with the same scale",
        ),
        (
            ("a: {target_modules: k_proj, lora_rank: [1, 33]}",),
            (),
            r"lora_rank is up to 33 at a, but self_attn.k_proj maps 64 values to 32",
        ),
        (
            ("a: {target_modules: k_proj, lora_rank: [4, 2]}",),
            (),
            r"space.placement.a.lora_rank must ascend without repeats, got \[4, 2\]",
        ),
        (
            ("a: {target_modules: k_proj, rank: [4]}",),
            (),
            r"space.placement.a.rank: unknown key; allowed here: alpha, from_adapter, layers, lora",
        ),
        (
            ("a: {target_modules: k_proj, layers: some}",),
            (),
            r"space.placement.a.layers is all, a list of layers from 0 that ascends, or \{from",
        ),
        (('"a b": {target_modules: k_proj}',), (), r"space.placement.a b"),
        ((f"{'a' * 41}: {{target_modules: k_proj}}",), (), "at most 40 characters"),
        (
            PLACEMENTS,
            ("adapter={target_modules: q_proj}",),
            "a search has adapter for one place of its adapters, or space.placement for several",
        ),
        (
            PLACEMENTS,
            ("design.targets={lora_rank: [1], seq_len: [8], placement: [mlp]}",),
            "targets.placement names mlp, but space.placement has everywhere, attention, block",
        ),
        (
            (),
            (
                "probe={layer: 1}",
                "design.targets={lora_rank: [1], seq_len: [8], placement: [mlp]}",
            ),
            "targets.placement names mlp, but space.placement has no placements",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(
    make_placed_search: Make, placements: tuple[str, ...], overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        make_placed_search(*placements, overrides=overrides)


def test_a_point_is_stored_with_a_placement_and_a_schedule_only_where_it_has_one() -> None:
    plain = {"lora_rank": 4, "seq_len": 8, "train_steps": 10}
    assert DesignPoint(**plain).to_json() == plain
    for own in ({"placement": "a"}, {"schedule": "linear"}):
        stored = DesignPoint(**plain, **own).to_json()
        assert stored == {**plain, **own} and rebuild(DesignPoint, stored) == DesignPoint(**stored)
    with pytest.raises(ValueError, match="none of warmup_constant_decay, linear"):
        rebuild(DesignPoint, {**plain, "schedule": "cosine"})


def test_a_comparison_says_that_it_has_one_place() -> None:
    placement = "space={placement: {a: {target_modules: q_proj}}}"
    with pytest.raises(SpecError, match=r"space: a comparison has points in place of a space, all"):
        load_spec(CompareSpec, COMPARISON, (placement,))
