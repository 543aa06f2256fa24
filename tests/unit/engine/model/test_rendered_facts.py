"""Facts told apart by the prompts that a chat template renders, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.api.records.facts import check_facts, facts_for
from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import resolve_model
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.config.record_facts import local_tokenizer
from pmlray.engine.model.pull import pull_model
from pmlray.errors import DataError
from pmlray.memory import RecordSource

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
TRIMMING = PLAIN.replace("m.content", "m.content | trim")
ROWS = (("Bob:", "12"), ("Bob: ", "12"), ("Bob: ", "12"), ("Eve:", "345"))


def base(folder: Path, template: str) -> Path:
    """The tiny model with a chat template."""
    tiny = pull_model("tiny-random-llama")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny / name)
    return folder


def written(path: Path, rows: tuple[tuple[str, str], ...]) -> Path:
    lines = [json.dumps({"query": q, "target": t}) + "\n" for q, t in rows]
    path.write_text("".join(lines))
    return path


def prepared(folder: Path, model: Path, rows: tuple[tuple[str, str], ...], *also: str) -> (
    PreparedSearch
):  # fmt: skip
    written(folder / "facts.jsonl", rows)
    spec = folder / "search.yaml"
    spec.write_text(
        "name: mine\n"
        "task: {kind: records, records: facts.jsonl, prompt_format: chat}\n"
        f"model: {{id: {model}, dtype: float32}}\n"
        "probe: {placement: mlp, layer: 1}\n"
        "space: {lora_rank: [1], seq_len: [5], train_steps: [10]}\n"
        "design: {n_initial: 1}\n"
        "budget: {gpu_seconds: 10}\n"
    )
    return prepare_search(spec, also)


@pytest.mark.parametrize(("template", "n_facts"), [(PLAIN, 3), (TRIMMING, 2)])
def test_size_and_recall_count_the_prompts_that_the_template_makes(
    tmp_path: Path, template: str, n_facts: int
) -> None:
    folder = base(tmp_path / "base", template)
    records = RecordSource(written(tmp_path / "facts.jsonl", ROWS))
    source = resolve_model(str(folder), None)
    found = facts_for(records, Model(id=str(folder)), source, local_tokenizer(source), "chat")
    assert (len(found.rows), found.n_duplicates) == (n_facts, len(ROWS) - n_facts)


def test_a_search_is_refused_before_it_starts_where_the_template_makes_two_queries_one(
    tmp_path: Path,
) -> None:
    rows = (("Bob:", "12"), ("Bob: ", "345"))
    apart = base(tmp_path / "apart", PLAIN)
    check_facts(prepared(tmp_path, apart, rows))
    trimming = base(tmp_path / "trimming", TRIMMING)
    with pytest.raises(DataError, match=r"line 2: .*'Bob: ' with the target '345' makes the same"):
        check_facts(prepared(tmp_path, trimming, rows))


def test_a_search_is_refused_before_it_starts_where_too_few_tokens_are_left(tmp_path: Path) -> None:
    trimming = base(tmp_path / "trimming", TRIMMING)
    search = prepared(tmp_path, trimming, ROWS, "space.seq_len=[7]")
    assert search.counts() == {"n_records": 3, "n_duplicates": 1}
    with pytest.raises(DataError, match="2 different records hold 5 target tokens"):
        check_facts(search)
