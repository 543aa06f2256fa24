"""Facts of a records file, told apart by the prompts that a base's own tokenizer renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers.models.auto.tokenization_auto import AutoTokenizer

from pmlray.config.bases.model_spec import Model
from pmlray.config.bases.models import ModelSource
from pmlray.engine.model.checkpoint import PLAIN_TOKENIZER, load_tokenizer
from pmlray.engine.model.prompts import render_prompt
from pmlray.errors import DataError, ModelError
from pmlray.memory import Facts, PlacedPair, Query, facts_by_tokens


def base_tokenizer(model: Model, source: ModelSource) -> Any:
    """Load a base's tokenizer, without its weights; ModelError where that fails."""
    if source.folder is not None:
        return load_tokenizer(model.id, source.folder, source.geometry.vocab)
    try:
        # By its id: a snapshot would hold the weights too.
        return AutoTokenizer.from_pretrained(model.id, revision=model.revision, **PLAIN_TOKENIZER)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {model.id}: {error}") from error


def rendered_facts(
    rows: Sequence[PlacedPair],
    where: str,
    tokenizer: Any,
    prompt_format: Literal["plain", "chat"],
    *,
    keep_lost: bool = False,
) -> Facts:
    """Return the facts of rows by the prompts that training gives the model.

    Args:
        rows: of the records file.
        where: that file, for messages.
        tokenizer: the base's, of transformers.
        prompt_format: of the prompts.
        keep_lost: as of `facts_by_tokens`.

    Returns:
        The different facts.

    Raises:
        DataError: as of `facts_by_tokens`; or the chat template cannot render a conversation.
        ModelError: the tokenizer has no chat template for chat prompts.
    """

    def encode(queries: Sequence[Query]) -> list[tuple[int, ...]]:
        prompts: list[tuple[int, ...]] = []
        for row, query in zip(rows, queries, strict=True):
            try:
                prompts.append(tuple(render_prompt(tokenizer, query, prompt_format)))
            except DataError as error:
                raise DataError(f"{where}, {row.place}: {error}") from error
        return prompts

    return facts_by_tokens(rows, where, tokenizer.backend_tokenizer, encode, keep_lost=keep_lost)
