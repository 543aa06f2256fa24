"""Conversion of text to token ids, and the ids that stand for text, on a `tokenizers.Tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pmlray.errors import DataError

_BROKEN = "\ufffd"


def clean_token_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the sorted ids that each decode, alone, to readable text.

    Left out: special and added tokens, ids that decode to nothing, and ids whose bytes are only
    part of a character (U+FFFD), which the random tokens of arXiv 2605.30260 did hold.
    DataError when no id is left.
    """
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    ids = sorted(token_id for token_id in vocabulary.values() if token_id not in added)
    texts = tokenizer.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)
    readable = (i for i, text in zip(ids, texts, strict=True) if text and _BROKEN not in text)
    kept = np.fromiter(readable, dtype=np.int64)
    if kept.size == 0:
        raise DataError(
            f"none of the tokenizer's {len(vocabulary)} tokens decodes to readable text; check "
            "that the tokenizer file has its decoder"
        )
    return kept


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], special: bool = False
) -> list[tuple[int, ...]]:
    """Encode each text on its own, without truncation or padding.

    special: add the special tokens of a text's beginning and end, as for a plain prompt.
    """
    # The stubs leave these types open; it only matters here whether they are set.
    truncation: Any = cast("Any", tokenizer).truncation
    padding: Any = cast("Any", tokenizer).padding
    if truncation is not None or padding is not None:
        # On a copy: the caller's tokenizer keeps its settings.
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=special)
    return [tuple(encoding.ids) for encoding in encodings]
