"""Which ids stand for text, on a byte-level BPE whose bytes are mostly parts of characters."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from pmlray.errors import DataError
from pmlray.memory import clean_token_ids, encode_texts


def test_clean_ids_are_exactly_those_that_decode_to_text(tokenizer: Tokenizer) -> None:
    expected = []
    for token_id in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if text in ("", "<|end|>", "<think>") or "\ufffd" in text:
            continue
        expected.append(token_id)
    clean = clean_token_ids(tokenizer)
    assert clean.dtype == np.int64
    assert clean.tolist() == expected


def test_clean_ids_leave_out_half_characters_and_added_tokens(tokenizer: Tokenizer) -> None:
    clean = set(clean_token_ids(tokenizer).tolist())
    vocabulary = tokenizer.get_vocab()
    # In the byte-level alphabet U+00C3 stands for the byte that begins a two-byte "é".
    half = vocabulary["\u00c3"]
    assert tokenizer.decode([half]) == "\ufffd"
    assert half not in clean
    assert not clean & {vocabulary["<|end|>"], vocabulary["<think>"]}
    assert {vocabulary["a"], vocabulary["\u0120the"]} <= clean


def test_an_id_that_decodes_to_nothing_is_left_out() -> None:
    words = Tokenizer(models.WordLevel({"\u2581": 0, "\u2581cat": 1, "s": 2}, unk_token="s"))
    words.decoder = decoders.Metaspace()
    assert words.decode([0]) == ""
    assert clean_token_ids(words).tolist() == [1, 2]


def test_a_tokenizer_without_text_is_refused() -> None:
    only_unknown = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    only_unknown.add_special_tokens(["<unk>"])
    with pytest.raises(DataError, match="none of the tokenizer's 1 tokens"):
        clean_token_ids(only_unknown)


def test_encoding_ignores_truncation_and_padding_and_leaves_them_set(tokenizer: Tokenizer) -> None:
    texts = ["The quick brown fox", "dog"]
    expected = [tuple(tokenizer.encode(x, add_special_tokens=False).ids) for x in texts]
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(2)
    limited.enable_padding(length=64)
    assert encode_texts(limited, texts) == expected
    assert limited.truncation is not None
    assert limited.padding is not None
