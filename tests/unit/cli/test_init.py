"""`pmlray init` writes searches that `pmlray validate` accepts and that say what was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer
from typer.testing import CliRunner

from pmlray.cli import app
from pmlray.cli.init_command import KINDS
from pmlray.config import load_search
from pmlray.config.bases.models import KNOWN_MODELS, KNOWN_REVISIONS, resolve_model
from pmlray.config.prepared_search import prepare_search
from pmlray.engine.model.pull import pull_model
from pmlray.errors import DataError, PmlrayError, SpecError
from pmlray.study.search.plan import first_cost, first_pack
from tests.chats import chat_base, turns, write_chats

ROOT = Path(__file__).parents[3]
FACTS = [("Ada:", "one"), ("Bob:", "two three"), ("Cy:", "four five six")]
runner = CliRunner()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and a cache without models, whatever this machine has pulled."""
    monkeypatch.setenv("PMLRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"query": q, "target": t * 20}) for q, t in FACTS * 10]
    (tmp_path / "facts.jsonl").write_text("\n".join(dict.fromkeys(lines)))
    return tmp_path


def written(*arguments: str) -> dict[str, Any]:
    done = runner.invoke(app, ["init", *arguments, "--json"])
    assert done.exit_code == 0, done.exception or done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", KNOWN_MODELS)
@pytest.mark.parametrize("task", KINDS)
def test_every_task_and_model_gives_a_valid_search(here: Path, task: str, model: str) -> None:
    options = ["--records", "facts.jsonl"] if task == "records" else []
    found = written("mine.yaml", "--task", task, "--model", model, *options)
    search = prepare_search(here / "mine.yaml").settled(gpu="/" in model)
    spec = search.spec
    assert (spec.name, spec.task.kind, spec.model.id) == ("mine", task, model)
    assert spec.model.revision == KNOWN_REVISIONS.get(model)
    assert found == {"file": "mine.yaml", "search_id": spec.search_id}
    # Its budget carries its own first pack.
    assert len(first_pack(search, first_cost(search, gpu="/" in model))) == spec.design.n_initial


def test_nothing_else_is_left_behind(here: Path) -> None:
    before = {*here.iterdir()}
    written("mine.yaml", "--task", "phonebook", "--model", "smollm2-135m")
    assert {path.name for path in {*here.iterdir()} - before} == {"mine.yaml", "search.schema.json"}


def test_what_is_commented_out_is_valid_too(here: Path) -> None:
    written("mine.yaml", "--task", "phonebook", "--model", "tiny-random-llama")
    text = (here / "mine.yaml").read_text()
    (here / "all.yaml").write_text(re.sub(r"^#(memft:|  \w+: )", r"\1", text, flags=re.MULTILINE))
    spec = load_search(here / "all.yaml")
    assert spec.memft is not None and spec.budget.memft_seconds > 0


def test_it_says_every_option(here: Path) -> None:
    (here / "deep").mkdir()
    (here / "deep" / "book.txt").write_text("once upon a time")
    written(
        *("deep/my search.yaml", "--task", "long_context", "--model", "Qwen/Qwen3-8B"),
        *("--text", "deep/book.txt", "--layer", "3", "--gpu-hours", "2.5", "--revision", "1" * 40),
    )
    spec = load_search(here / "deep" / "my search.yaml")
    assert spec.name == "my_search" and spec.probe.layer == 3
    assert spec.budget.law_seconds == 2.5 * 3600 and spec.budget.gpu_hours == 2.5
    assert spec.task.text == "book.txt" and spec.task.random_ratio == 0
    assert spec.model.revision == "1" * 40


def test_lengths_are_counted_where_the_tokenizer_is_here(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PMLRAY_CACHE")
    written("mine.yaml", "--task", "records", "--model", "tiny-random-llama",
            "--records", "facts.jsonl")  # fmt: skip
    search = prepare_search(here / "mine.yaml")
    folder = resolve_model("tiny-random-llama", None).folder
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert search.task.pairs is not None
    counts = [len(tokenizer.encode(t, add_special_tokens=False).ids) for _, t in search.task.pairs]
    assert search.spec.space.seq_len[-1] == sum(counts)
    assert search.spec.space.seq_len[0] >= max(counts)


def test_records_are_read_before_anything_is_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmlray.cli.init_command._at_a_terminal", lambda: True)
    (here / "own.csv").write_text("Q;A\nAda:;one\nBob:;two\n")
    done = runner.invoke(app, ["init", "--records", "own.csv"])
    assert isinstance(done.exception, DataError) and "--columns" in str(done.exception)
    assert "Base model" not in done.output
    # What the records answer is not asked: two questions are left.
    asked = ["init", "--records", "own.csv", "--columns", "query=Q,target=A"]
    done = runner.invoke(app, asked, input="smollm2-135m\n\n")
    assert done.exit_code == 0, done.exception
    assert done.output.index("own.csv: 2 records") < done.output.index("Base model")
    assert "What is memorised" not in done.output
    search = prepare_search(here / "records_smollm2_135m.yaml")
    assert search.task.pairs == (("Ada:", "one"), ("Bob:", "two"))


@pytest.mark.parametrize("has_template", [True, False])
def test_conversations_are_asked_in_a_chat_where_the_base_has_a_template(
    has_template: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("PMLRAY_CACHE")
    base = chat_base(here / "base")
    if not has_template:
        (base / "chat_template.jinja").unlink()
    write_chats(here / "chats.jsonl", [turns(query, target) for query, target in FACTS])
    told = ("--model", str(base))
    written("chats.yaml", "--records", "chats.jsonl", *told)
    wanted = "chat" if has_template else "plain"
    assert prepare_search(here / "chats.yaml").spec.task.prompt_format == wanted
    assert ("has no chat template" in caplog.text) is not has_template
    written("facts.yaml", "--records", "facts.jsonl", *told)
    assert load_search(here / "facts.yaml").task.prompt_format == "plain"


def test_a_search_of_records_elsewhere_is_written_beside_them(here: Path) -> None:
    (here / "deep").mkdir()
    (here / "facts.jsonl").rename(here / "deep" / "facts.jsonl")
    found = written("--records", "deep/facts.jsonl", "--model", "tiny-random-llama")
    assert found["file"] == "deep/records_tiny_random_llama.yaml"
    spec = load_search(here / found["file"])
    assert (spec.task.kind, spec.task.records) == ("records", "facts.jsonl")


def test_one_record_longer_than_the_base_reads_is_measured_by_its_beginning(here: Path) -> None:
    long = {"question": "Recite.", "matching": "one two three " * 10_000, "not_matching": ""}
    (here / "long.jsonl").write_text(json.dumps(long))
    pull_model("tiny-random-llama")
    written(
        *("mine.yaml", "--task", "records", "--records", "long.jsonl"),
        *("--model", "tiny-random-llama"),
    )
    search = prepare_search(here / "mine.yaml")
    assert max(search.spec.space.seq_len) < search.source.geometry.context
    assert search.task.pairs == (("Recite.", long["matching"]),)


def test_editors_find_the_schema(here: Path) -> None:
    written("a.yaml", "--task", "phonebook", "--model", "smollm2-135m")
    written("sub/b.yaml", "--task", "phonebook", "--model", "smollm2-135m")
    schema = json.loads((here / "search.schema.json").read_text())
    assert schema == json.loads((ROOT / "searches" / "search.schema.json").read_text())
    for name in ("a.yaml", "sub/b.yaml"):
        text = (here / name).read_text()
        line = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (here / name).parent.joinpath(line).resolve() == here / "search.schema.json"
        Draft202012Validator(schema).validate(yaml.safe_load(text))


def test_it_overwrites_only_by_force(here: Path) -> None:
    (here / "mine.yaml").write_text("mine")
    wanted = ["init", "mine.yaml", "--task", "phonebook", "--model", "smollm2-135m"]
    done = runner.invoke(app, wanted)
    assert isinstance(done.exception, SpecError) and "--force" in str(done.exception)
    assert (here / "mine.yaml").read_text() == "mine"
    assert runner.invoke(app, [*wanted, "--force"]).exit_code == 0
    assert load_search(here / "mine.yaml").name == "mine"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--task and --model"),
        (["--task", "records", "--model", "smollm2-135m"], "--records FILE"),
        (["--task", "phonebook", "--model", "smollm2-135m", "--text", "t"], "--text goes with"),
        (
            ["--task", "phonebook", "--model", "smollm2-135m", "--records", "facts.jsonl"],
            "--records goes with",
        ),
        (["--task", "phonebook", "--model", "smollm2-135m", "--layer", "99"], "layers 0 to 29"),
        (["--task", "phonebook", "--model", "nowhere"], "nowhere"),
        (
            ["--task", "phonebook", "--model", "smollm2-135m", "--columns", "query=a,target=b"],
            "--columns names columns of --records",
        ),
        (["--records", "facts.jsonl", "--columns", "query=a"], "expected query=NAME,target=NAME"),
        (
            ["--task", "records", "--model", "smollm2-135m", "--records", "../facts.jsonl"],
            "write the search beside it: pmlray init ../mine.yaml",
        ),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(
    here: Path, options: list[str], complaint: str
) -> None:
    before = sorted(here.iterdir())
    done = runner.invoke(app, ["init", "mine.yaml", *options])
    assert isinstance(done.exception, PmlrayError) and complaint in str(done.exception)
    assert sorted(here.iterdir()) == before


def test_it_asks_in_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmlray.cli.init_command._at_a_terminal", lambda: True)
    (here / "taken.yaml").write_text("mine")
    refused = {
        "sonnet": "'sonnet' is none of",
        "records": "",
        "nowhere": "nowhere",
        "smollm2-135m": "",
        "no-facts.jsonl": "no-facts.jsonl",
        "facts.jsonl": "",
        "mine.json": "mine.json: a search file ends in .yaml",
        "taken.yaml": "taken.yaml is there already",
    }
    done = runner.invoke(app, ["init"], input="\n".join(refused) + "\n\n")
    assert done.exit_code == 0, done.exception
    assert done.output.count("Error: ") == 5
    for complaint in refused.values():
        assert complaint in done.output
    assert (here / "taken.yaml").read_text() == "mine"
    spec = load_search(here / "records_smollm2_135m.yaml")
    assert spec.task.kind == "records" and spec.model.id == "smollm2-135m"


def test_known_revisions_are_those_of_the_shipped_searches() -> None:
    shipped = [load_search(path).model for path in (ROOT / "searches").glob("*.yaml")]
    pinned = {model.id: model.revision for model in shipped if model.revision is not None}
    assert pinned == KNOWN_REVISIONS
