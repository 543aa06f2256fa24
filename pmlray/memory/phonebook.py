"""Made-up phone books: unique names, unique ten-digit numbers, nested in size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Protocol

import numpy as np

from pmlray.errors import DataError
from pmlray.memory.names import FIRST_NAMES, LAST_NAMES

MAX_RECORDS = len(FIRST_NAMES) * len(LAST_NAMES)
_LOWEST_NUMBER = 6_000_000_000
_HIGHEST_NUMBER = 9_999_999_999
_DRAWS = 4096
_FIRST_GUESS = 64


class TargetEncoder(Protocol):
    """Encoder of each text on its own into token ids."""

    def __call__(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]: ...


def phonebook_records(n: int, seed: int, sequence_id: int = 0) -> tuple[tuple[str, str], ...]:
    """Return the first n (name, number) entries of one phone book.

    n: entries, 1 to MAX_RECORDS; seed, sequence_id: each pair of them is another, independent book.
    Names are "First Last"; numbers are ten digits, the first uniform on 6 to 9, the others on 0 to
    9. The first m of n entries are the m entries. DataError when n is out of range.
    Source: the PhoneBook task of arXiv 2605.30260 (31.9 bits an entry).
    """
    if not 1 <= n <= MAX_RECORDS:
        raise DataError(
            f"{n} phonebook records were asked for; there are names for 1 to {MAX_RECORDS}"
        )
    name_seed, number_seed = np.random.SeedSequence(seed, spawn_key=(sequence_id,)).spawn(2)
    name_codes = np.random.default_rng(name_seed).permutation(MAX_RECORDS)[:n].tolist()
    numbers = _unique_numbers(n, np.random.default_rng(number_seed))
    return tuple(
        (_name(code), str(number)) for code, number in zip(name_codes, numbers, strict=True)
    )


def phonebook_size(max_seq_len: int, seed: int, sequence_id: int, encode: TargetEncoder) -> int:
    """Return the number of entries that hold at least max_seq_len target tokens.

    max_seq_len: supervised tokens; encode: the numbers' tokeniser, whose tokens per number are not
    known beforehand. DataError when all MAX_RECORDS entries hold fewer tokens.
    """
    n = min(_FIRST_GUESS, MAX_RECORDS)
    while True:
        numbers = [number for _, number in phonebook_records(n, seed, sequence_id)]
        lengths = [len(ids) for ids in encode(numbers)]
        for size, total in enumerate(accumulate(lengths), start=1):
            if total >= max_seq_len:
                return size
        if n == MAX_RECORDS:
            raise DataError(
                f"seq_len {max_seq_len} is longer than the largest phone book: {n} records hold "
                f"{sum(lengths)} target tokens; use a seq_len of at most that"
            )
        n = min(2 * n, MAX_RECORDS)


def _name(code: int) -> str:
    first, last = divmod(code, len(LAST_NAMES))
    return f"{FIRST_NAMES[first]} {LAST_NAMES[last]}"


def _unique_numbers(n: int, rng: np.random.Generator) -> list[int]:
    # Draws come in blocks of one size whatever n is, so that a longer book starts as a shorter one.
    numbers: dict[int, None] = {}
    while len(numbers) < n:
        block = rng.integers(_LOWEST_NUMBER, _HIGHEST_NUMBER, size=_DRAWS, endpoint=True)
        numbers.update(dict.fromkeys(block.tolist()))
    return list(islice(numbers, n))
