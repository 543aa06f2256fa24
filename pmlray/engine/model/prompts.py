"""Prompts and ends of records as token ids, by a base's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from jinja2 import TemplateError

from pmlray.config.bases.chat_prompt import FIXED_DATE, SYSTEM_PROMPT
from pmlray.config.prepared_search import PreparedSearch
from pmlray.errors import DataError, ModelError
from pmlray.memory import MemorySet, Query, build_memory, query_text
from pmlray.memory.reading.dialogue import Turn

PromptFormat = Literal["plain", "chat"]
# Stands for an answer in a rendered chat, to find what the template puts after one.
ANSWER = "pmlray-answer"


def render_prompt(tokenizer: Any, query: Query, prompt_format: PromptFormat) -> list[int]:
    """Return the token ids of a prompt, as plain text or by the chat template.

    query: a text, which the template gets as a user turn behind SYSTEM_PROMPT; or the turns of a
    conversation, which it gets as they are. ModelError for `chat` when the tokenizer has no chat
    template, DataError when it cannot render those turns.
    """
    if prompt_format == "plain":
        return list(tokenizer(query_text(query))["input_ids"])
    rendered = _render_chat(tokenizer, asked_turns(query), None)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def end_token_id(tokenizer: Any, prompt_format: PromptFormat) -> int:
    """Return the token that ends an answer, at which generation is to stop.

    For `chat` the first special token that the template puts after an answer; otherwise, and where
    the template puts none, the tokenizer's end token.

    Raises:
        ModelError: the tokenizer has no end token, or no chat template for `chat`.

    Example:
        >>> end_token_id(AutoTokenizer.from_pretrained("Qwen/Qwen3-8B"), "chat")
        151645
    """
    if prompt_format == "chat":
        _, _, after = _render_chat(tokenizer, asked_turns("?"), ANSWER).rpartition(ANSWER)
        special = set(tokenizer.all_special_ids)
        for token_id in tokenizer(after, add_special_tokens=False)["input_ids"]:
            if token_id in special:
                return int(token_id)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "this model's tokenizer names no end token, so that no adapter can be taught where an"
            " answer ends; set task.end: false, or save the tokenizer with its eos_token"
        )
    return int(tokenizer.eos_token_id)


def end_token_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Return the tokens at which generation with a base stops; none where it has none.

    The tokenizer's end token, the end of turn of its chat template, and the end tokens of the
    model's config and generation_config.
    """
    found: set[int] = set()
    for config in (model.config, model.generation_config):
        ends = getattr(config, "eos_token_id", None)
        found.update([ends] if isinstance(ends, int) else ends or ())
    formats: tuple[PromptFormat, ...] = ("plain", "chat") if tokenizer.chat_template else ("plain",)
    if tokenizer.eos_token_id is not None:
        found.update(end_token_id(tokenizer, one) for one in formats)
    return frozenset(found)


def search_end_id(search: PreparedSearch, tokenizer: Any) -> int | None:
    """Return the end that a search's records are trained with; None where they have none."""
    task = search.spec.task
    return end_token_id(tokenizer, task.prompt_format) if task.end else None


def search_memory(search: PreparedSearch, tokenizer: Any, sequence_id: int) -> MemorySet:
    """Return the text of a search's sequence at its longest length, with prompts and ends.

    DataError where the data holds less, ModelError where the tokenizer lacks what the task needs.
    """
    task = search.spec.task
    return build_memory(
        search.task,
        sequence_id,
        max(search.spec.space.seq_len),
        tokenizer.backend_tokenizer,
        partial(render_prompt, tokenizer, prompt_format=task.prompt_format),
        search_end_id(search, tokenizer),
    )


def asked_turns(query: Query) -> tuple[Turn, ...]:
    """Return the turns of a chat that the answer follows."""
    return (("system", SYSTEM_PROMPT), ("user", query)) if isinstance(query, str) else query


def _render_chat(tokenizer: Any, asked: Sequence[Turn], answer: str | None) -> str:
    """Render turns, and the answer to them, or else the beginning of one, by the chat template."""
    if tokenizer.chat_template is None:
        raise ModelError(
            "this model's tokenizer has no chat template; set task.prompt_format: plain"
        )
    turns = [{"role": role, "content": content} for role, content in asked]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=answer is None,
            tokenize=False,
            enable_thinking=False,
            date_string=FIXED_DATE,
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the base's chat template does not render the turns {roles} ({error}); change the"
            " turns of the records, or take prompt_format plain"
        ) from error
