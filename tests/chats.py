"""A base whose tokenizer has a chat template, and records that are conversations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmlray.config.bases.models import TINY
from pmlray.engine.model.pull import pull_model

# Ends a turn of the assistant by the tokenizer's end token, as templates of real bases do.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ '</s>' if m.role == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_base(folder: Path) -> Path:
    """Make the tiny random base in a folder, with a chat template."""
    shutil.copytree(pull_model(TINY), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a conversation of user and assistant in turn, perhaps behind a system's."""
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def write_chats(file: Path, chats: Sequence[Sequence[dict[str, str]]]) -> list[dict[str, Any]]:
    """Write conversations as lines of `messages`, and return the rows."""
    rows = [{"messages": list(chat)} for chat in chats]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
