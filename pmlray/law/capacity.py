"""Capacity of adapters in bits: a loss reduction as stored information.

A text of l tokens whose loss fell by delta_loss nats per token takes l delta_loss / ln 2 fewer bits
to write down with the adapter than without it (arithmetic coding). Part of that is what the adapter
learnt about the kind of text, not about the text: its loss reduction on fresh text of the same
distribution, which a control measures (the unintended memorisation of arXiv 2505.24832, with the
frozen base as the reference).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pmlray.errors import DataError
from pmlray.law.data import FloatArray
from pmlray.law.forms.protocol import Law

# A PhoneBook number: its first digit one of 6 to 9, nine more digits, all uniform (arXiv
# 2605.30260, data of the authors' repository).
PHONEBOOK_BITS_PER_RECORD = math.log2(4 * 10**9)


@dataclass(frozen=True, slots=True)
class StoredBits:
    """Bits of a memorised text that an adapter holds.

    `total` by the loss reduction on the text; `learnt` of these by what the adapter knows of its
    distribution; `per_param` verbatim bits an adapter parameter, None where their number is not
    known; `share` of the source's entropy that is held, None where that is not known.
    """

    total: float
    learnt: float
    per_param: float | None
    share: float | None

    @property
    def verbatim(self) -> float:
        """Bits of the text itself."""
        return self.total - self.learnt


def adapter_params(lora_rank: float, in_width: int, out_width: int) -> float:
    """Return the number of parameters of one LoRA adapter: A (in_width, r) and B (r, out_width)."""
    return lora_rank * (in_width + out_width)


def stored_bits(
    delta_loss: float,
    supervised_tokens: float,
    n_params: float | None,
    *,
    control_delta_loss: float = 0.0,
    entropy_bits: float | None = None,
) -> StoredBits:
    """Return the bits stored of tokens whose loss fell by delta_loss nats per token.

    n_params: of the adapter, None where their number is not known. control_delta_loss: the same
    adapter's loss reduction on fresh text of the same distribution, nats per token; below 0 nothing
    is taken off. entropy_bits: of the whole text, where its source is known. Raises DataError on
    numbers that no measurement gives.
    """
    if not (math.isfinite(delta_loss) and math.isfinite(control_delta_loss)):
        raise DataError("delta_loss and its control must be finite nats per token")
    unknown_or_positive = all(x is None or x > 0 for x in (n_params, entropy_bits))
    if supervised_tokens < 1 or not unknown_or_positive:
        raise DataError("supervised_tokens, n_params and entropy_bits must be positive")
    total = supervised_tokens * delta_loss / math.log(2.0)
    # An adapter that recites its own text makes fresh text less likely: it has learnt nothing of
    # the kind, and no text holds more bits than its loss reduction says.
    learnt = supervised_tokens * max(control_delta_loss, 0.0) / math.log(2.0)
    share = None if entropy_bits is None else (total - learnt) / entropy_bits
    per_param = None if n_params is None else (total - learnt) / n_params
    return StoredBits(total, learnt, per_param, share)


def predicted_bits(
    law: Law,
    samples: FloatArray,
    lora_rank: float,
    seq_len: float,
    train_steps: float,
    level: float = 0.9,
) -> tuple[float, float, float]:
    """Return the bits that the law expects to be stored, with the central interval of its samples
    (n, P)."""
    scale = seq_len / math.log(2.0)
    drawn = [
        float(law.with_params(sample).predict(lora_rank, seq_len, train_steps))
        for sample in samples
    ]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    predicted = float(law.predict(lora_rank, seq_len, train_steps))
    return scale * predicted, scale * float(low), scale * float(high)


def phonebook_entropy(n_records: int) -> float:
    """Return the entropy of a PhoneBook's numbers in bits: 31.9 a record."""
    return n_records * PHONEBOOK_BITS_PER_RECORD
