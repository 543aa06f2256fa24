"""Format in which records are asked, where nobody has said it."""

from __future__ import annotations

from typing import Literal

from pmlray.config.bases.chat_template import has_chat_template
from pmlray.config.bases.models import ModelSource
from pmlray.memory import RecordSource, read_rows

CHAT_PROMPTS = (
    "prompts go through the base's chat template, and the adapter is to be asked through it;"
    " --prompt-format plain takes them as plain text"
)
PLAIN_CONVERSATIONS = (
    "the records are conversations, and the base's tokenizer has no chat template: their prompts"
    " are taken as plain text, and so the adapter must be asked; a base with a chat template takes"
    " them as a chat, and --prompt-format plain (in a search task.prompt_format: plain) says that"
    " plain text is meant"
)


def holds_conversations(records: RecordSource) -> bool:
    """Return whether a row's query is the turns of a conversation, and no text."""
    return any(not isinstance(pair.query, str) for pair in read_rows(records))


def default_format(
    records: RecordSource, model_id: str, source: ModelSource
) -> Literal["plain", "chat"]:
    """Return how records are asked unless something else says it.

    Conversations are asked in chats, where the base has a template that makes one of them; all
    other records, and those of a base without a template, as plain text.
    """
    if holds_conversations(records) and has_chat_template(model_id, source):
        return "chat"
    return "plain"
