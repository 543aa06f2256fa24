"""Memory of a pack, estimated from sizes, beside what autograd keeps and what adapters are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pmlray.backends.store.file_store import FileStore
from pmlray.config import Recipe
from pmlray.config.adapters.adapter_memory import adapter_bytes, check_adapter_fits, position_bytes
from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine import ready_pack as preparation
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_lora import PackedLora
from pmlray.engine.measure import measure_pack
from pmlray.engine.model.base_model import load_base_model
from pmlray.engine.model.batches import micro_batches
from pmlray.engine.model.prefix_cache import build_prefix_cache
from pmlray.engine.scheduling.members import Admission, make_members
from pmlray.engine.scheduling.pack_room import StepBytes, room_within
from pmlray.engine.training.step import TorchStepper
from pmlray.errors import ModelError
from pmlray.types import DesignPoint, Pack, Room
from tests.integration.engine.packs.test_admission import RUNS, members_of
from tests.unit.engine.conftest import make_run, random_record

RANK, LENGTH, ADAPTERS = 8, 160, 3
PLACES = {
    "all-linear": "{target_modules: all-linear}",
    "q, v": "{target_modules: [q_proj, v_proj]}",
    "blocks": "{target_modules: mlp_block, layers: [0, 2]}",
    "one site": "{target_modules: down_proj, layers: [1]}",
}


def of_rank(search: PreparedSearch, lora_rank: int) -> DesignPoint:
    return replace(search.spec.space.points()[0], lora_rank=lora_rank)


def kept_bytes(search: PreparedSearch, dropout: bool) -> float:
    """The bytes a position that autograd keeps of a forward pass, weights left out."""
    at = search.placements
    base = load_base_model(
        *(search.spec.model.id, search.source, None, "float32"),
        *(tuple(at.values()), torch.device("cpu")),
    )
    runs = [
        make_run(RANK, LENGTH, 1, seed=i, placement=list(at)[i % len(at)]) for i in range(ADAPTERS)
    ]
    cache = build_prefix_cache(base, [random_record(LENGTH)])
    members = make_members(runs, [cache for _ in runs])
    own = [at[run.point.placement] for run in runs]
    lora = PackedLora(base, [RANK] * ADAPTERS, [0] * ADAPTERS, placements=own)
    (batch,) = micro_batches([row for member in members for row in member.rows])
    positions = batch.hidden_TD.shape[0]
    known = [*base.model.parameters(), *lora.parameters(), batch.hidden_TD, batch.adapter_in_TX]
    there = {tensor.untyped_storage().data_ptr() for tensor in known}
    sizes, alive = dict[int, int](), list[torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    mask = torch.ones(positions, lora.out_width) if dropout else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        AdaptedModel(base, lora)(batch, mask)
    return sum(sizes.values()) / positions


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_backward_needs_what_is_said_or_a_little_less(
    make_search: Callable[..., PreparedSearch], tiny_folder: str, place: str, dropout: bool
) -> None:
    search = make_search(
        "probe=null", f"adapter={PLACES[place]}", f"recipe.dropout={0.1 if dropout else 0.0}"
    )
    found, said = kept_bytes(search, dropout), position_bytes(search, [of_rank(search, RANK)], 4)
    assert found <= said <= 1.5 * found


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_backward_of_a_mixed_pack_needs_less_than_is_said(
    make_placed_search: Callable[..., PreparedSearch], tiny_folder: str, dropout: float
) -> None:
    search = make_placed_search(
        "everywhere: {target_modules: all-linear}",
        "low: {target_modules: down_proj, layers: [1]}",
        "high: {target_modules: mlp_block, layers: [3]}",
        overrides=[f"recipe.dropout={dropout}"],
    )
    points = search.spec.space.points()
    every = [replace(point, lora_rank=RANK) for point in points]
    found, said = kept_bytes(search, dropout > 0), position_bytes(search, every, 4)
    # Of an adapter at all sites, beside which the others of the pack have next to nothing.
    assert found <= said <= 2 * found
    # Sites that no adapter of the pack has take nothing, nor do layers below the lowest.
    high = [point for point in every if point.placement == "high"]
    assert position_bytes(search, high, 4) < said / 3


def test_each_placement_has_slots_of_its_own_size() -> None:
    step = StepBytes(((5, 100), (1, 7)), 2.0, 50)
    assert step.of(1, 10) == 100 + 7 + 20
    assert step.of(3, 80) == 300 + 7 + 100
    assert step.of(6, 80) == 500 + 7 + 100


def test_an_adapter_takes_itself_its_gradient_and_two_moments(
    make_search: Callable[..., PreparedSearch], tiny_folder: str, tmp_path: Path
) -> None:
    """And its observation says how large it is, and where."""
    search = make_search("probe=null", "adapter={target_modules: all-linear, layers: [1, 3]}")
    point = replace(search.spec.space.points()[0], lora_rank=4, seq_len=16, train_steps=5)
    run = search.plan_run(point, "sft", 0, 0, "law")
    store = FileStore(tmp_path)
    measure_pack(search, Pack(0, (run,)), store, store.adapters, TorchStepper, {})
    (o,) = store.observations()
    weights = store.adapters / run.run_key / "adapter_model.safetensors"
    tensors = load_file(weights).values()
    n_params = sum(tensor.numel() for tensor in tensors)
    assert adapter_bytes(search, of_rank(search, 4)) == 4 * sum(tensor.nbytes for tensor in tensors)
    assert o.provenance["adapter_params"] == n_params
    assert o.provenance["adapter_params_per_rank"] == n_params // 4
    told = o.provenance["placement"]
    assert told.items() >= search.placement.to_json().items()
    assert told["layers"] == [1, 3] and told["name"] == "all-linear of layers 1, 3"
    assert 2 * sum(told["params_per_rank"].values()) == n_params // 4
    assert (o.provenance["adapter_slots"], o.provenance["largest_rank"]) == (1, 4)


def test_an_adapter_beyond_the_devices_memory_is_refused_with_numbers(
    make_search: Callable[..., PreparedSearch],
    tiny_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = make_search("probe=null", "adapter={target_modules: all-linear}")
    needed = 16 * 16 * 4096
    check_adapter_fits(search, [of_rank(search, 16)], needed)
    with pytest.raises(ModelError) as caught:
        check_adapter_fits(search, [of_rank(search, 16)], needed - 1)
    for words in ("rank 16 at all-linear of all layers", "65,536 parameters", "smaller ranks"):
        assert words in str(caught.value)
    # A worker looks before it loads the base.
    monkeypatch.setattr(preparation, "main_memory", lambda threads: 2**19)
    store, point = FileStore(tmp_path), search.spec.space.points()[-1]
    run = search.plan_run(point, "sft", 0, 0, "law")
    with pytest.raises(ModelError, match=r"but a pack's device has 0\.0 GiB"):
        measure_pack(
            search, Pack(0, (run,)), store, store.adapters, TorchStepper, {}, load_base=never
        )


def never(*_: object) -> None:
    raise AssertionError("the base was loaded")


@given(
    RUNS,
    st.integers(1, 10**4),
    st.integers(1, 500),
    st.integers(20, 400),
    st.floats(0, 1e5),
    st.none() | st.builds(Room, st.integers(1, 30), st.integers(1, 600)),
)
def test_a_room_fits_the_memory_or_is_for_one_run_after_another(
    sizes: list[tuple[int, int, int]],
    adapter: int,
    position: int,
    most_positions: int,
    free: float,
    planned: Room | None,
) -> None:
    members = members_of(sizes)
    step, recipe = (
        StepBytes(((len(sizes), adapter),), position, most_positions),
        Recipe(batch_size=2),
    )

    def taken(room: Room | None) -> float:
        admission = Admission(members, recipe, room)
        return step.of(admission.most_at_once, admission.positions)

    room = room_within(free, step, members, recipe, planned)
    if taken(planned) <= free:
        assert room == planned
    else:
        assert room is not None and (taken(room) <= free or room == Room(1, 1))
        asked = Admission(members, recipe, planned)
        assert room.rows <= asked.rows and room.positions <= asked.positions
