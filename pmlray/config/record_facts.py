"""Facts of a records file for a base model, told apart by its tokenizer where that is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from tokenizers import Tokenizer

from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.models import ModelSource
from pmlray.memory import (
    Facts,
    PlacedPair,
    Query,
    RecordSource,
    encode_texts,
    facts_by_text,
    facts_by_tokens,
    plain_query,
    query_text,
    read_rows,
)

TOKENIZER_FILE = "tokenizer.json"


def local_tokenizer(source: ModelSource) -> Tokenizer | None:
    """Return a base model's tokenizer; None where it is not on this machine, or not a fast one."""
    if source.folder is None or not (source.folder / TOKENIZER_FILE).is_file():
        return None
    return read_tokenizer(source.folder / TOKENIZER_FILE)


def prompt_rows(
    records: RecordSource, prompt_format: Literal["plain", "chat"]
) -> tuple[PlacedPair, ...]:
    """Return the rows of records with their queries as the prompt format takes them.

    Plain prompts are texts, so that of a conversation only its one user turn can be one. DataError
    as of `read_rows` and `plain_query`.
    """
    rows = read_rows(records)
    if prompt_format == "chat":
        return rows
    return tuple(
        replace(row, query=plain_query(row.query, f"{records}, {row.place}")) for row in rows
    )


def read_facts(
    records: RecordSource,
    tokenizer: Tokenizer | None,
    prompt_format: Literal["plain", "chat"],
    keep_lost: bool = False,
) -> Facts:
    """Read the different facts of records, before any model is loaded.

    tokenizer: of the base; None: facts are told apart by their texts. What a chat template does to
    a query, such as cutting its spaces, shows only once transformers renders it:
    `engine.model.rendered_facts`. keep_lost: as of `facts_by_tokens`. DataError names all rows
    that cannot be memorised as they are.
    """
    rows = prompt_rows(records, prompt_format)
    if tokenizer is None:
        return facts_by_text(rows, str(records))
    encode = partial(encode_queries, tokenizer, prompt_format)
    return facts_by_tokens(rows, str(records), tokenizer, encode, keep_lost=keep_lost)


def encode_queries(
    tokenizer: Tokenizer, prompt_format: Literal["plain", "chat"], queries: Sequence[Query]
) -> list[tuple[int, ...]]:
    """Return the token ids of queries: of whole plain prompts, or of a chat prompt's user text.

    The latter between other text, where it stands in a chat: at the beginning of a text a tokenizer
    may treat spaces in another way.
    """
    texts = [query_text(query) for query in queries]
    if prompt_format == "plain":
        return encode_texts(tokenizer, texts, special=True)
    return encode_texts(tokenizer, [f":{text}:" for text in texts])
