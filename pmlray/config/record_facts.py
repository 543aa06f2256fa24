"""Facts of a records file for a base model, told apart by its tokenizer where that is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from pmlray.config.bases.checks import read_tokenizer
from pmlray.config.bases.models import ModelSource
from pmlray.memory import Facts, encode_texts, facts_by_text, facts_by_tokens, read_rows

TOKENIZER_FILE = "tokenizer.json"


def local_tokenizer(source: ModelSource) -> Tokenizer | None:
    """Return a base model's tokenizer; None where it is not on this machine, or not a fast one."""
    if source.folder is None or not (source.folder / TOKENIZER_FILE).is_file():
        return None
    return read_tokenizer(source.folder / TOKENIZER_FILE)


def read_facts(
    records: Path,
    tokenizer: Tokenizer | None,
    prompt_format: Literal["plain", "chat"],
    keep_lost: bool = False,
) -> Facts:
    """Read the different facts of a records file, before any model is loaded.

    tokenizer: of the base; None: facts are told apart by their texts. What a chat template does to
    a query, such as cutting its spaces, shows only once transformers renders it:
    `engine.model.rendered_facts`. keep_lost: as of `facts_by_tokens`. DataError names all rows
    that cannot be memorised as they are.
    """
    rows = read_rows(records)
    if tokenizer is None:
        return facts_by_text(rows, str(records))
    encode = partial(encode_queries, tokenizer, prompt_format)
    return facts_by_tokens(rows, str(records), tokenizer, encode, keep_lost=keep_lost)


def encode_queries(
    tokenizer: Tokenizer, prompt_format: Literal["plain", "chat"], queries: Sequence[str]
) -> list[tuple[int, ...]]:
    """Return the token ids of queries: of whole plain prompts, or of a chat prompt's user text.

    The latter between other text, where it stands in a chat: at the beginning of a text a tokenizer
    may treat spaces in another way.
    """
    if prompt_format == "plain":
        return encode_texts(tokenizer, queries, special=True)
    return encode_texts(tokenizer, [f":{query}:" for query in queries])
