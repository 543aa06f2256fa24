"""A tiny byte-level BPE tokenizer, trained in memory."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog near the quiet river bank.",
    "Sphinxes of black quartz judge every vow that a naïve café owner makes.",
    "0123456789 9876543210 6001002003 7778889990",
    "東京 Zürich São Paulo 🙂",
] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.add_tokens([AddedToken("<think>", special=False)])
    return bpe
