"""`pmlray size` with records that are conversations, without training anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmlray.config.bases.models import TINY
from pmlray.config.search_spec import Model
from pmlray.errors import DataError, SpecError, StoreError
from pmlray.study.sizing.request import search_spec
from tests.chats import chat_base, turns, write_chats
from tests.unit.cli.test_size import (
    MLP,
    N_RECORDS,
    STEPS,
    invoke,
    record_set,
    records,
    refused,
    size_json,
    stored_law,
)

__all__ = ["records"]

CHATS = [turns(f"key {i}?", f"{7 * i + 10}", system="Be brief.") for i in range(N_RECORDS)]
DRY = ["--dry-run", "--address", "elsewhere:6379"]


def test_conversations_go_through_a_bases_chat_template(
    records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, chats = chat_base(tmp_path / "base"), tmp_path / "chats.jsonl"
    write_chats(chats, CHATS)
    asked = ["--model", base, "--records", chats, *DRY]
    assert size_json(*asked)["prompt_format"] == "chat"
    assert "prompts go through the base's chat template" in invoke("size", *asked).stdout
    # One user turn can be a plain text, if that is what is wanted.
    write_chats(chats, [chat[1:] for chat in CHATS])
    plain = size_json(*asked, "--prompt-format", "plain")
    assert plain["prompt_format"] == "plain" and plain["out"] != size_json(*asked)["out"]
    asked[3] = records
    assert size_json(*asked)["prompt_format"] == "plain"
    assert "chat template" not in invoke("size", *asked).stdout and caplog.text == ""
    assert size_json(*asked, "--prompt-format", "chat")["prompt_format"] == "chat"


def test_conversations_are_plain_text_with_a_warning_where_a_base_has_no_template(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chats = tmp_path / "chats.jsonl"
    write_chats(chats, [chat[1:] for chat in CHATS])
    assert size_json("--records", chats, *DRY)["prompt_format"] == "plain"
    assert "the base's tokenizer has no chat template" in caplog.text
    caplog.clear()
    size_json("--records", chats, "--prompt-format", "plain", *DRY)
    assert caplog.text == ""
    # Several turns are no plain text at all.
    write_chats(chats, CHATS)
    said = refused(DataError, "size", "--model", TINY, "--records", chats, *DRY)
    assert "turns system, user is no plain prompt" in said and "take a base that has one" in said


def test_a_law_or_a_sizing_in_another_prompt_format_is_refused_with_the_cure(
    records: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, chats = chat_base(tmp_path / "base"), tmp_path / "chats.jsonl"
    write_chats(chats, [chat[1:] for chat in CHATS])
    law = stored_law(tmp_path / "law", records, model=str(base))
    asked = ["--model", base, "--records", chats, "--confidence", "0.6", "--recall", "0.9"]
    said = refused(SpecError, "size", *asked, "--law", law, *DRY)
    assert "measured with plain prompts" in said and "--prompt-format plain" in said
    plain = size_json(*asked, "--law", law, "--prompt-format", "plain", *DRY)
    assert plain["prompt_format"] == "plain" and caplog.text == ""
    spec = json.loads((law / "search.json").read_text())
    spec["task"]["prompt_format"] = "chat"
    (law / "search.json").write_text(json.dumps(spec))
    assert size_json(*asked, "--law", law, *DRY)["prompt_format"] == "chat"
    # A sizing begun as plain text goes on as plain text alone.
    out = tmp_path / "out"
    begun = search_spec(
        *(record_set(chats), Model(id=str(base), dtype="float32"), MLP, 32, STEPS, "plain")
    )
    (out / "law").mkdir(parents=True)
    (out / "law" / "search.json").write_text(begun.model_dump_json())
    said = refused(StoreError, "size", *asked, "--out", out, *DRY)
    assert "give --prompt-format plain, or choose another --out" in said
