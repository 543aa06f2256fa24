"""`recipe.learning_rate: auto`: what it becomes, and that searches of before keep id and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pmlray.api.stores import claim_search
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.recipe import FORMER_RATE, Recipe, auto_rate
from pmlray.errors import StoreError
from pmlray.types import DesignPoint
from tests.unit.conftest import make_placed_search, make_search, search_file  # noqa: F401

Make = Callable[..., PreparedSearch]
POINT = DesignPoint(1, 16, 5)


def test_more_modules_and_larger_ranks_have_a_lower_rate() -> None:
    rates = [auto_rate(1, n) for n in (1, 7, 60, 210, 1000)]
    assert rates[0] == 4e-2 and 0.9e-2 < rates[3] < 1.2e-2
    assert rates == sorted(rates, reverse=True)
    # At all linear modules of SmolLM2 rank 8 was best at 5e-3, and far worse at the 1e-2 of rank 1.
    assert auto_rate(64, 1) == 4e-2 and 3e-3 < auto_rate(8, 210) < 6e-3
    assert auto_rate(64, 210) == pytest.approx(auto_rate(32, 210) / 2, rel=0.05)


def test_records_have_a_lower_rate_at_many_modules() -> None:
    # 100 facts were learnt at 1.5e-3 and 4e-3 in 20 epochs, at 1.1e-2 in none of 20 or 41.
    assert 1.5e-3 <= auto_rate(2, 210, many_records=True) <= 4.5e-3
    # 60 facts: best at 4e-2 for rank 12 at one module, and at 1e-2 for rank 1 at all linear ones.
    assert auto_rate(12, 1, many_records=True) == auto_rate(12, 1) == 4e-2
    assert 5e-3 < auto_rate(1, 210, many_records=True) <= 1e-2
    assert all(
        auto_rate(r, n, many_records=True) <= auto_rate(r, n)
        for r in (1, 4, 64)
        for n in (1, 7, 60, 210)
    )


def test_a_run_has_the_rate_of_its_place_and_the_key_of_one_that_says_it(
    make_search: Make,  # noqa: F811
) -> None:
    auto = make_search("recipe.learning_rate=auto")
    run = auto.plan_run(POINT, "sft", 0, 0, "law")
    assert run.learning_rate == auto.peak_rate(run) == 4e-2
    said = make_search("recipe.learning_rate=0.04")
    same = said.plan_run(POINT, "sft", 0, 0, "law")
    assert same.learning_rate is None and said.peak_rate(same) == 4e-2
    assert same.run_key == run.run_key and said.spec.search_id != auto.spec.search_id
    # A step moves twice as far where the output is doubled.
    double = ["probe=null", "adapter={target_modules: [down_proj], layers: [1], alpha: 2r}"]
    doubled = make_search("recipe.learning_rate=auto", *double)
    assert doubled.plan_run(POINT, "sft", 0, 0, "law").learning_rate == 2e-2
    wide = ["recipe.learning_rate=auto", "probe=null", "adapter={target_modules: all-linear}"]
    many = make_search(*wide)
    assert many.plan_run(POINT, "sft", 0, 0, "law").learning_rate == auto_rate(1, 7 * 4)
    records = make_search("task={kind: phonebook, prompt_format: plain}", *wide)
    rate = auto_rate(8, 7 * 4, many_records=True)
    assert rate < auto_rate(8, 7 * 4)
    at_8 = DesignPoint(8, 16, 5)
    assert records.plan_run(at_8, "sft", 0, 0, "law").learning_rate == rate
    # Under a schedule of the search, as for one that says its rate.
    recipe = auto.spec.recipe
    assert recipe.rate_at(9, 100, 4e-2) == Recipe(learning_rate=4e-2).rate_at(9, 100)
    with pytest.raises(ValueError, match="give the run's own"):
        recipe.rate_at(9, 100)


def test_a_store_of_the_former_default_says_how_it_is_continued(
    make_search: Make,  # noqa: F811
    tmp_path: Path,
) -> None:
    before = make_search(f"recipe.learning_rate={FORMER_RATE}")
    claim_search(tmp_path, before.spec)
    claim_search(tmp_path, before.spec)
    with pytest.raises(StoreError, match=r"set recipe\.learning_rate: 0\.01 to continue it"):
        claim_search(tmp_path, make_search("recipe.learning_rate=auto").spec)
    other = make_search("recipe.learning_rate=auto", "seeds=[5]")
    with pytest.raises(StoreError) as refused:
        claim_search(tmp_path, other.spec)
    assert "recipe.learning_rate" not in str(refused.value)
