"""`pmlray size --from-adapter`: what is planned and refused; nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.backends.store.file_store import FileStore
from pmlray.config.adapters.adapter_spec import Adapter
from pmlray.config.adapters.start_adapter import read_start
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import TINY, resolve_model
from pmlray.errors import ModelError, SpecError
from pmlray.study.sizing.request import RecordSet, search_spec
from pmlray.types import PlannedRun
from tests.fakes import observe
from tests.starts import ALPHA, RANK, factors, save_start
from tests.unit.cli.test_size import N_RECORDS, invoke, records, refused, size_json

__all__ = ["records"]
ELSEWHERE = ("--dry-run", "--address", "elsewhere:6379")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return save_start(tmp_path / "first")


def test_ranks_begin_at_the_adapters_and_its_sites_are_used(
    records: Path, first: Path, tmp_path: Path
) -> None:
    asked = ("--records", records, "--from-adapter", first, *ELSEWHERE)
    plan = size_json(*asked)
    start = read_start(first, Model(id=TINY), resolve_model(TINY, None))
    assert plan["from_adapter"] == {"sha256": start.sha256, "lora_rank": RANK}
    assert plan["lora_ranks"] == [RANK, 2 * RANK] and plan["largest_rank"] == 64
    assert plan["adapter"]["layers"] == [1, 3]
    assert plan["adapter"]["alpha_per_rank"] == ALPHA / RANK
    text = invoke("size", "--model", TINY, *asked).stdout
    assert "from an adapter of rank 2" in text
    # Results of another adapter are elsewhere, and so are those from scratch.
    other = save_start(tmp_path / "other", factors(seed=1))
    outs = {plan["out"], size_json(*asked[:-3], *ELSEWHERE, "--from-adapter", other)["out"]}
    outs.add(size_json("--records", records, *ELSEWHERE)["out"])
    assert len(outs) == 3
    assert size_json("--records", records, *ELSEWHERE)["from_adapter"] is None


def test_one_rank_alone_may_be_asked_for(records: Path, first: Path) -> None:
    asked = ("--records", records, "--from-adapter", first, *ELSEWHERE, "--max-rank", RANK)
    plan = size_json(*map(str, asked))
    assert plan["lora_ranks"] == [RANK] and plan["largest_rank"] == RANK


@pytest.mark.parametrize(
    "option", [("--placement", "q_proj"), ("--layer", "1"), ("--layers", "all"), ("--alpha", "2r"),
               ("--rslora",)]
)  # fmt: skip
def test_what_the_adapter_says_itself_is_refused_beside_it(
    records: Path, first: Path, option: tuple[str, ...]
) -> None:
    asked = ("size", "--model", TINY, "--records", records, "--from-adapter", first, *option)
    assert "--from-adapter gives the sites and the scale" in refused(SpecError, *asked)


def test_smaller_ranks_and_other_bases_are_refused(records: Path, first: Path) -> None:
    asked = ("size", "--model", TINY, "--records", records, "--from-adapter", first)
    assert "has rank 2" in refused(SpecError, *asked, "--max-rank", "1")
    save_start(first, base_model_name_or_path="owner/another")
    assert "names owner/another as its base" in refused(ModelError, *asked)


def stored(folder: Path, start: Path | None) -> Path:
    """The store of a search of records, by runs that began with an adapter or from scratch."""
    pairs = tuple((f"key {i}:", f" {7 * i + 10}") for i in range(N_RECORDS))
    found = RecordSet(pairs, (3,) * N_RECORDS, (6,) * N_RECORDS)
    source = resolve_model(TINY, None)
    place = Adapter(target_modules="q_proj")
    told = {"model": source.identity}
    if start is not None:
        read = read_start(start, Model(id=TINY), source)
        place = Adapter(from_adapter="first")
        told["from_adapter"] = {**read.facts(), "start_loss": 5.0}
    spec = search_spec(found, Model(id=TINY, dtype="float32"), place, 16, 200, "plain", RANK)
    folder.mkdir()
    (folder / "search.json").write_text(spec.model_dump_json())
    store = FileStore(folder)
    for i, point in enumerate(spec.space.points()):
        run = PlannedRun(point, "sft", 1, 0, "law", f"{i:016x}")
        store.put(replace(observe(run, 0, i, 0.05, 1e-6), task="records", provenance=told))
    return folder


def test_a_law_is_of_runs_that_began_alike(records: Path, first: Path, tmp_path: Path) -> None:
    begun, fresh = stored(tmp_path / "begun", first), stored(tmp_path / "fresh", None)
    other = save_start(tmp_path / "other", factors(seed=1))
    asked = ("size", "--model", TINY, "--records", records)
    assert "began with an adapter" in refused(SpecError, *asked, "--law", begun)
    told = refused(SpecError, *asked, "--law", fresh, "--from-adapter", first)
    assert "began from scratch" in told
    assert "began with an adapter" in refused(
        SpecError, *asked, "--law", begun, "--from-adapter", other
    )
    plan = size_json(*asked[3:], "--law", begun, "--from-adapter", first, *ELSEWHERE)
    assert plan["law"] == str(begun) and plan["answer"]["lora_rank"] >= RANK
