"""A base's chat template is found where transformers finds it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.bases.chat_template import has_chat_template
from pmlray.config.bases.models import SMOLLM2, TINY, ModelSource, pulled_folder, resolve_model
from tests.chats import TEMPLATE

NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize(
    ("settings", "file", "has"),
    [
        ({}, None, False),
        ({"chat_template": None}, None, False),
        ({"chat_template": TEMPLATE}, None, True),
        ({"chat_template": NAMED}, None, True),
        ({}, TEMPLATE, True),
        ({"chat_template": None}, TEMPLATE, True),
    ],
)
def test_a_template_is_found_as_transformers_finds_it(
    settings: dict[str, Any], file: str | None, has: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    assert has_chat_template(str(folder), resolve_model(str(folder), None)) is has
    assert bool(AutoTokenizer.from_pretrained(str(folder)).chat_template) is has


def test_bases_that_were_not_pulled_are_told_apart() -> None:
    absent = {name: ModelSource(name, resolve_model(TINY, None).geometry, None)
              for name in (SMOLLM2, TINY)}  # fmt: skip
    assert has_chat_template(SMOLLM2, absent[SMOLLM2])
    assert not has_chat_template(TINY, absent[TINY])


def test_templates_of_which_none_is_for_plain_turns_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": NAMED[:1]}))
    assert not has_chat_template(str(folder), resolve_model(str(folder), None))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="default"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
