"""Searches and comparisons that begin with an adapter: what a spec says, and what runs are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.config.prepared_search import PreparedSearch, prepare_comparison, prepare_search
from pmlray.config.search_spec import SearchSpec
from pmlray.errors import SpecError
from pmlray.study.search.plan import first_cost
from pmlray.study.search.remaining_cost import measured_cost
from tests.starts import AT, RANK, factors, save_start

WEIGHTS = "adapter_model.safetensors"
SEARCHES = Path(__file__).parents[3] / "searches"


@pytest.fixture
def begins(search_file: Path) -> Callable[..., PreparedSearch]:
    """The unit tests' search, each run of which begins with the adapter in a folder beside it."""
    folder = save_start(search_file.parent / "first")
    assert folder.is_dir()

    def make(*overrides: str, adapter: str = "{from_adapter: first}") -> PreparedSearch:
        least = f"space.lora_rank=[{RANK},4]"
        own = ("probe=null", f"adapter={adapter}", least, "design.n_initial=1")
        return prepare_search(search_file, (*own, *overrides))

    return make


def keys(search: PreparedSearch) -> list[str]:
    return [search.plan_run(p, "sft", 0, 0, "law").run_key for p in search.spec.space.points()]


def test_a_search_has_the_adapters_sites(begins: Callable[..., PreparedSearch]) -> None:
    search = begins()
    assert search.placement == begins().placement and search.placement.sites == AT.sites
    per_rank = 2 * (64 + 64 + 128 + 64)
    assert search.params_per_rank == per_rank
    assert search.start is not None and search.start.facts()["lora_rank"] == RANK


def test_run_keys_follow_the_content_not_the_path(
    begins: Callable[..., PreparedSearch], search_file: Path
) -> None:
    first = begins()
    shutil.copytree(search_file.parent / "first", search_file.parent / "copy")
    assert keys(begins("adapter.from_adapter=copy")) == keys(first)
    sites = "{target_modules: [q_proj, down_proj], layers: [1, 3], alpha: 3r}"
    scratch = begins(adapter=sites)
    assert scratch.placement == first.placement
    save_start(search_file.parent / "first", factors(seed=1))
    other = begins()
    # A run's key is of its own weights, also where all else is the same.
    assert not {*keys(scratch)} & {*keys(first)} and not {*keys(other)} & {*keys(first)}
    assert other.spec.search_id == first.spec.search_id != scratch.spec.search_id


def test_a_spec_that_a_store_kept_is_read_back(begins: Callable[..., PreparedSearch]) -> None:
    spec = begins().spec
    stored = spec.model_dump_json()
    assert json.loads(stored)["adapter"] == {"from_adapter": "first"}
    assert SearchSpec.model_validate_json(stored).search_id == spec.search_id


@pytest.mark.parametrize("beside", ["target_modules: q_proj", "layers: all", "alpha: 1r",
                                    "use_rslora: false"])  # fmt: skip
def test_what_the_adapter_says_itself_is_not_given_beside_it(
    beside: str, begins: Callable[..., PreparedSearch]
) -> None:
    with pytest.raises(SpecError, match=f"leave out adapter.{beside.split(':')[0]}"):
        begins(adapter=f"{{from_adapter: first, {beside}}}")


def test_an_adapter_without_sites_says_what_is_needed(
    begins: Callable[..., PreparedSearch],
) -> None:
    with pytest.raises(SpecError, match=r"adapter.target_modules is needed, or adapter.from_ad"):
        begins(adapter="{alpha: 2r}")


def test_smaller_ranks_are_refused(begins: Callable[..., PreparedSearch]) -> None:
    with pytest.raises(SpecError, match=r"space.lora_rank.*down to 1.*has rank 2"):
        begins("space.lora_rank=[1,2]")
    with pytest.raises(SpecError, match="rank above its smaller side"):
        begins("space.lora_rank=[2,65]")


def test_no_file_outside_the_searchs_folder_is_read(
    begins: Callable[..., PreparedSearch],
    search_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    outside = save_start(tmp_path_factory.mktemp("outside") / "adapter")
    for name in (str(outside), f"../{outside.parent.name}/adapter"):
        with pytest.raises(SpecError, match=r"adapter.from_adapter: .* leads out"):
            begins(f"adapter.from_adapter={name}")
    inside = search_file.parent / "linked"
    shutil.copytree(search_file.parent / "first", inside)
    (inside / WEIGHTS).unlink()
    (inside / WEIGHTS).symlink_to(outside / WEIGHTS)
    with pytest.raises(SpecError, match=r"adapter.from_adapter: .* leads out"):
        begins("adapter.from_adapter=linked")


def test_a_comparison_begins_with_it_too(tmp_path: Path) -> None:
    save_start(tmp_path / "first")
    text = (SEARCHES / "comparisons" / "smoke.yaml").read_text()
    file = tmp_path / "compare.yaml"
    file.write_text(text)
    own = ("probe=null", "adapter={from_adapter: first}", "model.dtype=float32")
    at = "points=[{{lora_rank: {}, seq_len: 20, train_steps: 10}}]"
    spec, search = prepare_comparison(file, (*own, at.format(RANK)))
    assert spec.adapter == search.spec.adapter and search.placement.sites == AT.sites
    with pytest.raises(SpecError, match=r"down to 1.*has rank 2"):
        prepare_comparison(file, (*own, at.format(1)))


def test_one_of_several_placements_does_not_begin_with_an_adapter(
    begins: Callable[..., PreparedSearch],
) -> None:
    several = "{a: {from_adapter: first}, b: {target_modules: q_proj}}"
    with pytest.raises(SpecError, match="from_adapter is a key of adapter"):
        begins("adapter=null", f"space.placement={several}")


def test_its_cost_is_that_of_its_sites(begins: Callable[..., PreparedSearch]) -> None:
    search = begins()
    same = begins(adapter="{target_modules: [q_proj, down_proj], layers: [1, 3], alpha: 3r}")
    assert first_cost(search, gpu=False) == first_cost(same, gpu=False)
    # Of the spec alone, as `watch` reads it: the sites are not known.
    assert not measured_cost(search.spec, ()).measured
