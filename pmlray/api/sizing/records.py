"""Records of a sizing with the tokens of each, checked against the base that is to read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer

from pmlray.config.bases.hub import fetched_file
from pmlray.config.bases.models import ModelSource
from pmlray.config.prepared_search import CHAT_TEMPLATE_TOKENS
from pmlray.errors import DataError, ModelError
from pmlray.memory import Facts, encode_texts, query_text
from pmlray.study.sizing.request import RecordSet

if TYPE_CHECKING:
    from pmlray.api.sizing.plan import SizeRequest


def count_tokens(
    request: SizeRequest,
    facts: Facts,
    source: ModelSource,
    tokenizer: Tokenizer,
    prompt_format: Literal["plain", "chat"],
) -> RecordSet:
    """Return the records with their tokens; DataError where the base cannot read one."""
    targets = encode_texts(tokenizer, [row.target for row in facts.rows])
    queries = encode_texts(tokenizer, [query_text(row.query) for row in facts.rows])
    template = CHAT_TEMPLATE_TOKENS if prompt_format == "chat" else 0
    cure = "shorten it"
    if len(facts.rows) == 1:
        cure += ", or measure its beginning by a search, which cuts it to space.seq_len"
    for row, query, target in zip(facts.rows, queries, targets, strict=True):
        needed = len(query) + template + len(target)
        if needed > source.geometry.context:
            raise DataError(
                f"{request.records}, {row.place}: the record needs {needed} tokens with its prompt,"
                f" but {request.model} reads at most {source.geometry.context}; {cure}"
            )
    return RecordSet(
        facts.pairs,
        tuple(len(ids) for ids in targets),
        tuple(len(ids) + template for ids in queries),
        facts.n_duplicates,
        facts.repeats if request.keep_duplicates else None,
    )


def tokenizer_file(request: SizeRequest, source: ModelSource) -> Path:
    """Return the file of the base's tokenizer; ModelError where its folder has none."""
    if source.folder is not None:
        file = source.folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{source.folder} holds no tokenizer.json; save the model's fast one")
        return file
    assert source.revision is not None
    return fetched_file(request.model, "tokenizer.json", source.revision)
