"""Which comparisons may share a store."""

from pathlib import Path

import pytest

from pmlray.api.stores import claim_comparison
from pmlray.config.bases.dtype import settle
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.load import load_spec
from pmlray.errors import StoreError

SMOKE = Path(__file__).parents[3] / "searches" / "comparisons" / "smoke.yaml"


def _spec(*overrides: str) -> CompareSpec:
    return load_spec(CompareSpec, SMOKE, overrides)


def test_a_store_takes_more_points_and_texts_but_no_other_rules(tmp_path: Path) -> None:
    claim_comparison(tmp_path, _spec())
    more = _spec("points=[{lora_rank: 2, seq_len: 40, train_steps: 60}]", "sequences=[0, 1, 2]")
    claim_comparison(tmp_path, more)
    kept = (tmp_path / "comparison.json").read_text()
    assert CompareSpec.model_validate_json(kept) == more
    with pytest.raises(StoreError, match=r"recipe, memft differ; choose another --store"):
        claim_comparison(tmp_path, _spec("memft.margin=0.9", "recipe.batch_size=4"))


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"name": "old"}')
    with pytest.raises(StoreError, match="choose another --store"):
        claim_comparison(tmp_path, _spec())


def test_a_comparison_goes_on_in_its_dtype_alone(tmp_path: Path) -> None:
    auto = _spec("model={id: tiny-random-llama}")
    begun = auto.model_copy(update={"model": settle(auto.model, gpu=True)})
    other = _spec("model={id: tiny-random-llama, dtype: float32}")
    # Unlike a name of float32, one of bfloat16 is not seen in the id.
    assert _spec("model={id: tiny-random-llama, dtype: bfloat16}").compare_id == auto.compare_id
    claim_comparison(tmp_path, begun)
    kept = (tmp_path / "comparison.json").read_bytes()
    with pytest.raises(StoreError, match=r"base in bfloat16, not float32; leave model\.dtype out"):
        claim_comparison(tmp_path, other)
    with pytest.raises(StoreError, match="whose model differ"):
        claim_comparison(tmp_path, _spec("model={id: smollm2-135m, dtype: float32}"))
    assert (tmp_path / "comparison.json").read_bytes() == kept
    claim_comparison(tmp_path, _spec("model={id: tiny-random-llama, dtype: bfloat16}"))
