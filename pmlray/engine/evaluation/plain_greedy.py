"""Plain greedy decoding: the argmax at every step, and nothing else.

`transformers.generate` would apply the settings of the model's own generation_config (a repetition
penalty, forbidden n-grams, suppressed tokens) and stop at an end token inside a target.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from pmlray.memory import Record

# Tokens beyond twice the target's that an answer may take to end.
SPARE_TOKENS = 16


def most_answer_tokens(record: Record) -> int:
    """Return the number of tokens after which an answer that has not ended is cut off."""
    return 2 * len(record.target_ids) + SPARE_TOKENS


class _Answer:
    """Answer of one record, token by token; `open` until it has ended or is cut off."""

    def __init__(self, record: Record, ends: Collection[int], most: int) -> None:
        self.ids: list[int] = []
        self.open = True
        self._target, self._ends, self._most = record.target_ids, ends, most
        self._right = True

    def append(self, token_id: int) -> None:
        """Add a token; an end token that is the target's next one is part of the answer."""
        place = len(self.ids)
        self.ids.append(token_id)
        inside = self._right and place < len(self._target)
        self._right = inside and token_id == self._target[place]
        ended = token_id in self._ends and not self._right
        self.open = not ended and len(self.ids) < self._most


@torch.no_grad()
def answer_greedily(
    model: Any,
    records: Sequence[Record],
    ends: Collection[int],
    most_tokens: Sequence[int],
) -> list[tuple[int, ...]]:
    """Decode records whose prompts are equally long, with a key-value cache.

    Args:
        model: a causal language model of transformers, with its adapter in place.
        records: prompts, and the targets in which an end token does not end the answer.
        ends: tokens that end an answer.
        most_tokens: of each record's answer, its end included.

    Returns:
        Each record's answer, up to and with its end token, or cut off.

    Example:
        >>> answer_greedily(model, [record], {tokenizer.eos_token_id}, [64])
    """
    answers = [_Answer(r, ends, most) for r, most in zip(records, most_tokens, strict=True)]
    device = model.get_output_embeddings().weight.device
    ids_BT: Tensor = torch.tensor([record.prompt_ids for record in records], device=device)
    cache = DynamicCache(config=model.config)
    while any(answer.open for answer in answers):
        output = model(ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids_BT = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        for answer, token_id in zip(answers, ids_BT[:, 0].tolist(), strict=True):
            if answer.open:
                answer.append(token_id)
    return [tuple(answer.ids) for answer in answers]
