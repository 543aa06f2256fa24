"""Records are asked in a chat where they are conversations and the base has a template."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pmlray.api.records.prompts import default_format
from pmlray.api.records.source import record_source
from pmlray.config.bases.models import TINY, pulled_folder, resolve_model

MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ada."},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]}


@pytest.mark.parametrize(
    ("row", "columns", "in_chat"),
    [
        (MESSAGES, None, True),
        (SHAREGPT, None, True),
        ({"prompt": MESSAGES["messages"][:2], "completion": MESSAGES["messages"][2:]}, None, True),
        ({"prompt": "Who?", "completion": "Ada."}, None, False),
        ({"query": "Who?", "target": "Ada."}, None, False),
        ({**MESSAGES, "Q": "Who?", "A": "Ada."}, {"query": "Q", "target": "A"}, False),
    ],
)
def test_conversations_are_asked_in_a_chat_where_the_base_has_a_template(
    row: Mapping[str, Any], columns: Mapping[str, str] | None, in_chat: bool, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(pulled_folder(TINY), base)
    records = record_source([row], columns)
    source = resolve_model(str(base), None)
    assert default_format(records, str(base), source) == "plain"
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert default_format(records, str(base), source) == ("chat" if in_chat else "plain")
