"""Records that stand several times: what a search tells, and the stores of former versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pmlray.api.records.facts import check_same_records
from pmlray.config.prepared_search import PreparedSearch, prepare_search
from pmlray.errors import DataError, StoreError
from pmlray.study.search.plan import plan_search
from pmlray.types import DesignPoint
from tests.fakes import observe

ROWS = [("a:", "12")] * 3 + [("b:", "345")]


def prepared(folder: Path, rows: list[tuple[str, str]], *also: str) -> PreparedSearch:
    lines = [json.dumps({"query": q, "target": t}) + "\n" for q, t in rows]
    (folder / "facts.jsonl").write_text("".join(lines))
    spec = folder / "search.yaml"
    spec.write_text(
        "name: mine\n"
        "task: {kind: records, records: facts.jsonl, prompt_format: plain}\n"
        "model: {id: tiny-random-llama, dtype: float32}\n"
        "probe: {placement: mlp, layer: 1}\n"
        "space: {lora_rank: [1], seq_len: [5], train_steps: [10]}\n"
        "design: {n_initial: 1}\n"
        "budget: {gpu_seconds: 10}\n"
    )
    return prepare_search(spec, also)


def run_key(search: PreparedSearch) -> str:
    return search.plan_run(DesignPoint(1, 5, 10), "sft", 0, 0, "law").run_key


def test_a_search_trains_on_each_fact_once_and_tells_the_number(tmp_path: Path) -> None:
    once = prepared(tmp_path, ROWS)
    assert once.task.pairs == (("a:", "12"), ("b:", "345")) and once.task.repeats is None
    plan = plan_search(once, gpu=False)
    assert plan.to_json()["n_records"] == 2 and plan.to_json()["n_duplicates"] == 2
    assert "2 of 4 records repeat another one" in plan.describe()
    # Its runs are those of the same records without repetition.
    single = prepared(tmp_path, [ROWS[0], ROWS[3]])
    assert (
        run_key(once) == run_key(single) and "repeat" not in plan_search(single, False).describe()
    )
    kept = prepared(tmp_path, ROWS, "task.keep_duplicates=true")
    assert kept.task.repeats == (3, 1)
    assert run_key(kept) != run_key(once) and kept.spec.search_id != once.spec.search_id
    with pytest.raises(DataError, match="2 records hold 5 target tokens, each fact once"):
        prepared(tmp_path, ROWS, "space.seq_len=[9]")


def test_columns_tell_which_records_a_search_has_and_runs_are_theirs(tmp_path: Path) -> None:
    plain = prepared(tmp_path, ROWS)
    rows = [{"query": "no", "target": "no", "Q": q, "A": t} for q, t in ROWS]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = prepare_search(
        tmp_path / "search.yaml",
        ["task.records=named.jsonl", "task.columns={query: Q, target: A}"],
    )
    assert named.task.pairs == plain.task.pairs and run_key(named) == run_key(plain)
    assert named.spec.search_id != plain.spec.search_id


def test_a_conversation_needs_a_chat_template_unless_it_is_one_user_turn(tmp_path: Path) -> None:
    plain = prepared(tmp_path, ROWS)
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": t}] for q, t in ROWS]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    alone = prepare_search(tmp_path / "search.yaml")
    assert alone.task == plain.task and run_key(alone) == run_key(plain)
    chat = prepare_search(tmp_path / "search.yaml", ["task.prompt_format=chat"])
    assert chat.task.has_conversations and not plain.task.has_conversations
    assert chat.task.pairs == (((("user", "a:"),), "12"), ((("user", "b:"),), "345"))
    turns[3].insert(0, {"role": "system", "content": "Be short."})
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    with pytest.raises(DataError, match=r"facts\.jsonl, line 4: .* turns system, user is no plain"):
        prepare_search(tmp_path / "search.yaml")


def test_a_store_that_counted_repetitions_is_not_continued(tmp_path: Path) -> None:
    search = prepared(tmp_path, ROWS)
    run = search.plan_run(DesignPoint(1, 5, 10), "sft", 0, 0, "law")
    mine = observe(run, 0, 0, 0.0, 1e-3)
    check_same_records(search, [mine], tmp_path)
    former = replace(search, task=replace(search.task, pairs=tuple(ROWS)))
    theirs = replace(mine, run_key=run_key(former))
    with pytest.raises(StoreError, match="counted a repeated record more than once"):
        check_same_records(search, [mine, theirs], tmp_path)
    # Without repetitions nothing has changed, and nothing is asked of the store.
    single = prepared(tmp_path, [ROWS[0], ROWS[3]])
    check_same_records(single, [theirs], tmp_path)
