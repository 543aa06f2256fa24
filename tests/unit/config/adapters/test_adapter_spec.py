"""The `adapter` of a search: what it takes, where it puts adapters, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.api.stores import claim_comparison, claim_search, open_store
from pmlray.config.adapters.adapter_spec import Probe
from pmlray.config.bases.models import KNOWN_MODELS, SMOLLM2
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.errors import SpecError, StoreError

SMOKE = Path(__file__).parents[4] / "searches" / "comparisons" / "smoke.yaml"
PROBE = "probe: {placement: mlp, layer: 1}"


@pytest.fixture
def with_adapter(search_file: Path) -> Callable[..., PreparedSearch]:
    """Prepare the unit search with an adapter in place of its probe."""

    def make(adapter: str, *overrides: str) -> PreparedSearch:
        text = search_file.read_text()
        search_file.write_text(text.replace(PROBE, f"adapter: {{{adapter}}}"))
        return prepare_search(search_file, overrides)

    return make


# Of the tiny model: hidden width 64, inner width 128, keys and values 32 wide, 4 layers.
@pytest.mark.parametrize(
    ("adapter", "layers", "modules", "per_rank", "said"),
    [
        (
            "target_modules: all-linear",
            (0, 1, 2, 3),
            ("q", "k", "v", "o", "gate", "up", "down"),
            4 * (2 * 128 + 2 * 96 + 3 * 192),
            "all-linear of all layers",
        ),
        (
            "target_modules: [v_proj, self_attn.q_proj], layers: [0, 2], alpha: 2r",
            (0, 2),
            ("q", "v"),
            2 * (128 + 96),
            "v_proj, self_attn.q_proj of layers 0, 2, alpha 2r",
        ),
        (
            "target_modules: mlp_block, layers: {from: 1, to: 3}, alpha: 16, use_rslora: true",
            (1, 2, 3),
            ("mlp",),
            3 * 128,
            "mlp_block of layers 1 to 3, alpha 16, rsLoRA",
        ),
    ],
)
def test_an_adapter_sits_where_it_is_put(
    with_adapter: Callable[..., PreparedSearch],
    adapter: str,
    layers: tuple[int, ...],
    modules: tuple[str, ...],
    per_rank: int,
    said: str,
) -> None:
    search = with_adapter(adapter)
    assert search.placement.layers == layers
    names = [m.removesuffix("_proj").rpartition(".")[2] for m in search.placement.modules]
    assert tuple(names) == modules
    assert search.params_per_rank == per_rank
    assert search.spec.place.describe() == said


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("target_modules: c_attn", "the base's layers have no c_attn; they have self_attn.q_proj"),
        ("target_modules: []", "adapter.target_modules"),
        ("target_modules: 7", "a list of such names, all-linear, or mlp_block (got 7)"),
        ("target_modules: all-linear, layers: [1, 4]", "layer 4, but the base has layers 0 to 3"),
        ("target_modules: all-linear, layers: [2, 1]", "must ascend without repeats"),
        ("target_modules: all-linear, layers: [-1]", "a list of layers from 0 that ascends"),
        ("target_modules: all-linear, layers: {from: 3, to: 1}", "goes from 3 down to 1"),
        ("target_modules: all-linear, layers: {from: 1, upto: 3}", "{from: FIRST, to: LAST}"),
        ("target_modules: all-linear, alpha: 0", "a number above 0, or a multiple of the rank"),
        ("target_modules: all-linear, alpha: 0.0r", "a multiple of the rank such as 2r (got '0.0r"),
        ("target_modules: all-linear, alpha: .inf", "adapter.alpha is a number above 0"),
        ("target_modules: all-linear, rank: 3", "adapter.rank: unknown key; allowed here: alpha"),
        ("layers: all", "adapter.target_modules is needed"),
    ],
)
def test_bad_input_is_refused_with_its_line_and_in_one(
    with_adapter: Callable[..., PreparedSearch], search_file: Path, adapter: str, says: str
) -> None:
    with pytest.raises(SpecError) as caught:
        with_adapter(adapter)
    said = str(caught.value)
    assert said.startswith(f"{search_file}:4: ") and says in said and "\n" not in said


@pytest.mark.parametrize(
    ("adapter", "rank", "says"),
    [
        ("target_modules: all-linear", 33, "self_attn.k_proj maps 64 values to 32"),
        ("target_modules: down_proj", 65, "mlp.down_proj maps 128 values to 64"),
        ("target_modules: mlp_block", 65, "the paper's block maps 64 values to 64"),
    ],
)
def test_a_rank_above_a_modules_smaller_side_is_refused(
    with_adapter: Callable[..., PreparedSearch], adapter: str, rank: int, says: str
) -> None:
    most = rank - 1
    assert with_adapter(adapter, f"space.lora_rank=[{most}]").spec.space.lora_rank == (most,)
    with pytest.raises(SpecError) as caught:
        with_adapter(adapter, f"space.lora_rank=[1, {rank}]")
    said = str(caught.value)
    assert said.startswith(f"--set space.lora_rank=[1, {rank}]: lora_rank is up to {rank}, but")
    assert says in said and f"use at most {most}" in said


def test_a_search_and_a_comparison_have_one_of_adapter_and_probe(search_file: Path) -> None:
    both = "adapter={target_modules: all-linear}"
    for overrides, has in ((("probe=null",), "neither"), ((both,), "both")):
        with pytest.raises(SpecError, match=f"a search needs exactly one of .* and has {has}"):
            prepare_search(search_file, overrides)
    with pytest.raises(
        SpecError, match=r"a comparison needs exactly one .* and has both"
    ) as caught:
        load_spec(CompareSpec, SMOKE, (both,))
    assert "\n" not in str(caught.value)
    spec = load_spec(CompareSpec, SMOKE, (both, "probe=null"))
    assert spec.search_spec().adapter == spec.adapter and spec.search_spec().probe is None


def test_a_store_gives_an_adapter_back_and_takes_no_other(
    with_adapter: Callable[..., PreparedSearch], tmp_path: Path
) -> None:
    search = with_adapter("target_modules: [q_proj, v_proj], layers: {from: 2, to: 3}, alpha: 2r")
    claim_search(tmp_path, search.spec)
    stored = json.loads((tmp_path / "search.json").read_text())
    assert stored["adapter"]["layers"] == {"from": 2, "to": 3} and stored["probe"] is None
    spec, _ = open_store(tmp_path)
    assert (
        spec.adapter is not None and spec == search.spec and spec.search_id == search.spec.search_id
    )
    claim_search(tmp_path, spec)
    other = spec.model_copy(update={"adapter": spec.adapter.model_copy(update={"alpha": "3r"})})
    with pytest.raises(StoreError, match="holds the search"):
        claim_search(tmp_path, other)


def test_a_comparisons_store_is_of_one_placement(tmp_path: Path) -> None:
    of = "adapter={target_modules: all-linear, layers: {from: 0, to: 1}}"
    spec = load_spec(CompareSpec, SMOKE, ("probe=null", of, "model.dtype=float32"))
    claim_comparison(tmp_path, spec)
    claim_comparison(tmp_path, spec)
    other = load_spec(
        CompareSpec, SMOKE, ("probe=null", of.replace("1}", "2}"), "model.dtype=float32")
    )
    with pytest.raises(StoreError, match="whose adapter differ"):
        claim_comparison(tmp_path, other)


def test_the_same_sites_are_the_same_runs_however_they_are_named(
    with_adapter: Callable[..., PreparedSearch], search_file: Path
) -> None:
    first = search_file.read_text()
    keys = []
    for adapter in (
        "target_modules: [q_proj, v_proj]",
        "target_modules: [self_attn.v_proj, self_attn.q_proj], layers: {from: 0, to: 3}, alpha: 1r",
        "target_modules: [q_proj, v_proj], alpha: 1.0r",
        "target_modules: [q_proj, v_proj], layers: [0, 1, 2]",
        "target_modules: [q_proj, v_proj], alpha: 1.0",
        "target_modules: [q_proj, v_proj], use_rslora: true",
    ):
        search_file.write_text(first)
        search = with_adapter(adapter)
        run = search.plan_run(search.spec.space.points()[-1], "sft", 0, 0, "law")
        keys.append(run.run_key)
    assert len(set(keys[:3])) == 1 and len(set(keys)) == 4


def test_a_probe_needs_its_module() -> None:
    probe, modules = Probe(placement="down_proj", layer=1), {"attn.c_proj": (8, 8)}
    with pytest.raises(SpecError, match=r"probe.placement: .* no linear mlp.down_proj; they have"):
        probe.resolve(2, modules)
    assert Probe(layer=1).resolve(2, modules).modules == ("mlp",)


def test_of_each_base_all_linear_names_what_it_has() -> None:
    geometry = KNOWN_MODELS[SMOLLM2]
    per_layer = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    assert sum(sum(shape) for shape in geometry.modules.values()) == per_layer
    assert geometry.adaptable["mlp"] == (576, 576)
