"""Bad input names the key, the line and what is allowed; good input round-trips."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmlray.config import SearchSpec, load_search
from pmlray.config.compare_spec import CompareSpec
from pmlray.config.prepared_search import prepare_comparison, prepare_search
from pmlray.errors import DataError, ModelError, PmlrayError, SpecError
from pmlray.types import Phase

SEARCHES = sorted((Path(__file__).parents[3] / "searches").glob("*.yaml"))
COMPARISONS = sorted((Path(__file__).parents[3] / "searches" / "comparisons").glob("*.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "gpu_seconds: 120,",
            "gpu_secs: 120,",
            10,
            ["budget.gpu_secs", "unknown key", "gpu_hours"],
        ),
        ("pack_size: 3", "pack_size: three", 9, ["design.pack_size", "integer", "three"]),
        ("lora_rank: [1, 2, 4, 8, 16]", "lora_rank: [4, 2]", 5, ["lora_rank", "ascend"]),
        ("kind: long_context", "kind: novel", 2, ["task.kind", "phonebook", "records"]),
        ("layer: 1", "layer: -1", 4, ["probe.layer", "greater than or equal to 0"]),
        ("model: {id: tiny-random-llama, ", "model: {", 3, ["model.id is needed"]),
        ("sequences: [0, 1]", "sequences: [4294967296]", 12, ["sequences", "4294967296"]),
        ("seeds: [0]", "seeds: [0]\nseeds: [1]", 14, ["seeds", "twice"]),
        ("train_steps: [100]", "train_steps: 100", 8, ["space.train_steps", "100"]),
    ],
)
def test_complaints_name_line_and_remedy(
    search_file: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    text = search_file.read_text()
    assert old in text
    search_file.write_text(text.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_search(search_file)
    assert f"{search_file}:{line}:" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("probe.layer=9", SpecError, ["layers 0 to 3"]),
        ("space.seq_len=[16, 4096]", DataError, ["4096", "1024"]),
        ("task={kind: records, records: none.jsonl}", DataError, ["none.jsonl"]),
        ("task={kind: records}", SpecError, ["task.records is needed"]),
        (
            "task={kind: phonebook, columns: {query: Q, target: A}}",
            SpecError,
            ["task.columns names columns of task.records"],
        ),
        (
            "task={kind: records, records: a.csv, columns: {query: Q}}",
            SpecError,
            ["task.columns.target is needed"],
        ),
        ("task={kind: long_context, random_ratio: 20}", SpecError, ["task.text is needed"]),
        (
            "model.id=nobody/nothing",
            ModelError,
            ["model.revision of nobody/nothing is not given", "as revision"],
        ),
        ("model.id=./missing", ModelError, ["neither a folder"]),
        ("budget={gpu_seconds: 1, gpu_hours: 1}", SpecError, ["exactly one"]),
        ("no-equals-sign", SpecError, ["key=value"]),
        ("design.n_initial=99", SpecError, ["99", "40 runs"]),
    ],
)
def test_impossible_values_are_refused_before_anything_starts(
    search_file: Path, override: str, error: type[PmlrayError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        prepare_search(search_file, [override])
    for word in words:
        assert word in str(caught.value)


def test_numbers_in_scientific_notation_are_numbers(search_file: Path) -> None:
    spec = load_search(search_file, ["recipe.learning_rate=1e-2"])
    assert spec.recipe.learning_rate == 0.01


def test_search_id_depends_on_content_not_on_layout(search_file: Path) -> None:
    spec = load_search(search_file)
    search_file.write_text("# a comment\n" + search_file.read_text())
    assert load_search(search_file).search_id == spec.search_id
    assert load_search(search_file, ["seeds=[1]"]).search_id != spec.search_id
    assert SearchSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_shipped_searches_are_valid(path: Path) -> None:
    assert prepare_search(path).spec.name == path.stem


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_shipped_comparisons_are_valid(path: Path) -> None:
    spec, search = prepare_comparison(path)
    assert search.spec.space.points()
    assert CompareSpec.model_validate_json(spec.model_dump_json()) == spec
    assert search.spec.memft_rules() == spec.memft.rules(spec.task.kind)


def test_run_key_covers_what_determines_a_result(search_file: Path) -> None:
    def key(*overrides: str) -> str:
        search = prepare_search(search_file, overrides)
        point = search.spec.space.points()[0]
        return search.plan_run(point, "sft", 0, 0, "law").run_key

    same = key()
    assert key("recipe.stop_gain=0.5") != same != key("recipe.stop_gain=0.0")
    for irrelevant in ("budget.gpu_seconds=500", "design.pack_size=5", "name=other"):
        assert key(irrelevant) == same
    for relevant in ("recipe.learning_rate=0.1", "model.dtype=bfloat16", "probe.layer=2",
                     "task.data_seed=1", "task.prompt_format=chat"):  # fmt: skip
        assert key(relevant) != same


def test_methods_are_compared_without_early_stops(search_file: Path) -> None:
    def key(phase: Phase, *overrides: str) -> str:
        search = prepare_search(search_file, overrides)
        return search.plan_run(search.spec.space.points()[0], "sft", 0, 0, phase).run_key

    never = ("recipe.stop_loss=0.0", "recipe.stop_gain=0.0")
    assert key("memft") == key("memft", *never) == key("law", *never) != key("law")


def test_searches_begun_when_packs_had_four_runs_keep_their_id(search_file: Path) -> None:
    def search_id(pack_size: str, *more: str) -> str:
        overrides = (f"design.pack_size={pack_size}", *more)
        return prepare_search(search_file, overrides).spec.search_id

    # The default of today is the former one: what their stores' files name.
    assert search_id("4") == search_id("null") != search_id("5")
    all_default = ("design={n_initial: 6, pack_size: 4}", "design={n_initial: 6}")
    ids = {prepare_search(search_file, (design,)).spec.search_id for design in all_default}
    assert len(ids) == 1
