"""`pmlray recall` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.adapters.placement import Placement
from pmlray.config.bases.models import KNOWN_MODELS, TINY, pulled_folder
from pmlray.config.search_spec import Probe
from pmlray.engine.adapters.peft_io import save_adapter
from pmlray.engine.model.pull import pull_model
from pmlray.errors import DataError, ModelError
from tests.adapters import save_one
from tests.unit.cli.test_size import N_RECORDS, invoke, records, refused

__all__ = ["records"]


def test_recall_ends_with_1_below_its_minimum(
    records: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    arguments = ["recall", "--adapter", tiny_adapter, "--records", records]
    assert invoke(*arguments).exit_code == 0
    assert invoke(*arguments, "--min", "0").exit_code == 0
    below = invoke(*arguments, "--min", "0.99")
    assert below.exit_code == 1 and "below the wanted 0.99" in below.stdout
    assert "instead of ' 10'" in below.stdout
    found = json.loads(invoke(*arguments, "--min", "0.99", "--json").stdout)
    assert found["n_recalled"] == 0 and found["passed"] is False
    assert len(found["not_recalled"]) == N_RECORDS


def test_recall_refuses_an_adapter_of_something_else(
    records: Path, tmp_path: Path, tiny_adapter: Path
) -> None:
    arguments = ["recall", "--adapter", tiny_adapter, "--records", records]
    assert "not of smollm2-135m" in refused(ModelError, *arguments, "--model", "smollm2-135m")
    config = json.loads((tiny_adapter / "pmlray_adapter.json").read_text())
    (tiny_adapter / "pmlray_adapter.json").write_text(json.dumps({**config, "layer": 9}))
    assert "adapts layer 9" in refused(ModelError, *arguments)
    assert "holds no adapter" in refused(
        ModelError, "recall", "--adapter", tmp_path, "--records", records
    )


def test_decoding_that_takes_its_time_says_how_far_it_is(
    records: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["recall", "--adapter", tiny_adapter, "--records", records]
    assert "records decoded" not in invoke(*arguments).output
    monkeypatch.setattr("pmlray.api.recall_check.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("pmlray.engine.evaluation.greedy_decode.MAX_MICRO_BATCH_TOKENS", 1)
    said = invoke(*arguments, "--json").stderr
    assert [f"{n} of {N_RECORDS} records decoded" in said for n in (1, N_RECORDS)] == [True, True]


def test_recall_counts_a_repeated_record_once(tmp_path: Path, tiny_adapter: Path) -> None:
    rows = [("a:", "1")] * 4 + [("b:", "2")]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"query": q, "target": t}) + "\n" for q, t in rows))
    arguments = ["recall", "--adapter", tiny_adapter, "--records", path]
    found = json.loads(invoke(*arguments, "--json").stdout)
    assert (found["n_records"], found["n_duplicates"]) == (2, 3)
    assert len(found["not_recalled"]) == 2 and found["lost"] == []
    assert "3 more rows repeat one of them" in invoke(*arguments).output


def test_recall_never_counts_a_target_that_the_tokenizer_changes(tmp_path: Path) -> None:
    """The adapter changes nothing, and the targets are what the bare base answers in tokens."""
    base = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), base)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(base / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    # A query whose answer has a letter: the target is its upper case, whose tokens are the same.
    for query in (f"q{i}" for i in range(5000)):
        ids = torch.tensor([tokenizer.encode(query).ids])
        answer = tokenizer.decode([int(model(ids).logits[0, -1].argmax())])
        if answer.isascii() and answer.isalpha() and answer.islower():
            break
    else:
        pytest.skip("the tiny model begins no answer with a letter")
    folder = tmp_path / "store" / "adapters" / "0"
    save_one(folder, Probe(layer=2), (torch.zeros(64, 2), torch.zeros(2, 64)), str(base))
    path = tmp_path / "facts.jsonl"
    for target, recalled in ((answer, 1), (answer.upper(), 0)):
        path.write_text(json.dumps({"query": query, "target": target}))
        asked = ["recall", "--adapter", folder, "--records", path, "--dtype", "float32"]
        told = invoke(*asked, "--no-end")
        assert f"recalled {recalled} of 1 records" in told.stdout, told.output
    assert f"line 1: {answer.upper()!r} becomes {answer!r}" in told.stderr


def test_a_conversation_is_asked_as_transformers_renders_it(tmp_path: Path) -> None:
    """The adapter changes nothing, and each target is what the bare base generates."""
    base = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), base)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}<asked>{% endif %}"
        "{% for m in messages %}\n<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(str(base))
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    rows = []
    for n in range(200):
        asked = [
            *([{"role": "system", "content": f"Be number {n}."}] if n % 2 else []),
            *({"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}),
            {"role": "user", "content": f"And {chr(97 + n % 26)}{n}{chr(65 + n % 25)}"},
        ]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        whole = model.generate(**prompt, max_new_tokens=1, do_sample=False)
        answer = tokenizer.decode(whole[0, prompt["input_ids"].shape[1] :])
        if answer.isascii() and answer.isprintable() and answer.strip():
            rows.append({"messages": [*asked, {"role": "assistant", "content": answer}]})
    assert len({len(row["messages"]) for row in rows}) == 2
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(rows, indent=1))
    folder = tmp_path / "store" / "adapters" / "0"
    save_one(folder, Probe(layer=2), (torch.zeros(64, 2), torch.zeros(2, 64)), str(base))
    options = ["--records", path, "--dtype", "float32", "--no-end", "--json"]
    # Nothing says how this adapter was trained: conversations are asked in a chat.
    told = invoke("recall", "--adapter", folder, *options)
    found = json.loads(told.stdout)
    assert found["n_recalled"] == found["n_records"] == len(rows), told.output
    said = refused(DataError, "recall", "--adapter", folder, *options, "--prompt-format", "plain")
    assert "chats.json, line 2: a conversation that begins with the turns" in said


@pytest.fixture
def tiny_adapter(tmp_path: Path) -> Path:
    """An adapter that changes nothing, as a store keeps it."""
    folder = tmp_path / "store" / "adapters" / "0"
    weights = torch.zeros(64, 2), torch.zeros(2, 64)
    save_one(folder, Probe(layer=2), weights, TINY)
    return folder


def test_a_target_at_whose_middle_others_would_stop_is_told(
    tiny_adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "facts.jsonl"
    rows = [{"query": "a", "target": "b</s>c"}, {"query": "d", "target": "e"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["recall", "--adapter", tiny_adapter, "--records", path]
    assert "1 targets hold an end token" in invoke(*asked).stderr
    path.write_text(json.dumps(rows[1]))
    assert "hold an end token" not in invoke(*asked).stderr


def test_a_base_of_another_machine_is_overruled_by_model(
    records: Path, tmp_path: Path, other_machines: Path
) -> None:
    arguments = ["recall", "--adapter", other_machines, "--records", records, "--json"]
    said = refused(ModelError, *arguments)
    assert "/content/base" in said and "give its base by --model" in said
    for model in (TINY, str(pull_model(TINY))):
        done = invoke(*arguments, "--model", model)
        assert done.exit_code == 0 and json.loads(done.stdout)["n_records"] == N_RECORDS
    config = json.loads((other_machines / "adapter_config.json").read_text())
    for named in ("owner/name", None):
        changed = {**config, "base_model_name_or_path": named}
        (other_machines / "adapter_config.json").write_text(json.dumps(changed))
        assert "--model" in refused(ModelError, *arguments)
        assert invoke(*arguments, "--model", TINY).exit_code == 0


def test_a_base_that_is_here_is_not_overruled_by_another(
    records: Path, tmp_path: Path, other_machines: Path
) -> None:
    config = json.loads((other_machines / "adapter_config.json").read_text())
    own = tmp_path / "base"
    shutil.copytree(pull_model(TINY), own)
    changed = {**config, "base_model_name_or_path": str(own)}
    (other_machines / "adapter_config.json").write_text(json.dumps(changed))
    other = tmp_path / "other"
    shutil.copytree(own, other)
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    arguments = ["recall", "--adapter", other_machines, "--records", records]
    assert invoke(*arguments).exit_code == 0
    assert "not of" in refused(ModelError, *arguments, "--model", other)


@pytest.fixture
def other_machines(tmp_path: Path) -> Path:
    """An adapter as PEFT saved it on another machine."""
    folder = tmp_path / "foreign"
    probe = Probe(placement="down_proj", layer=2)
    save_one(folder, probe, (torch.zeros(128, 2), torch.zeros(2, 64)), "/content/base")
    return folder


@pytest.mark.parametrize(
    ("layers", "factor", "says"),
    [((0, 30), 1, "no adapted module is in layer 30"), ((0, 3), 2, "size mismatch")],
)
def test_an_adapter_of_many_modules_of_another_base_is_refused(
    records: Path, tmp_path: Path, layers: tuple[int, ...], factor: int, says: str
) -> None:
    pull_model(TINY)
    placement = Placement(layers, ("self_attn.q_proj", "mlp.down_proj"))
    shapes = KNOWN_MODELS[TINY].modules
    weights = {}
    for site in placement.sites:
        width, out = shapes[site.module]
        weights[site] = torch.ones(factor * width, 2), torch.zeros(2, factor * out)
    save_adapter(tmp_path / "theirs", placement, weights, "someone/else", "0123abc")
    arguments = ["recall", "--adapter", tmp_path / "theirs", "--records", records]
    assert says in refused(ModelError, *arguments, "--model", TINY)
