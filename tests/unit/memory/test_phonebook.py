"""Phone books: unique, nested, and with the paper's digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.memory import MAX_RECORDS, phonebook_records, phonebook_size

GOLDEN = (("Nancy Chambers", "8386719142"), ("Ruth Sullivan", "7459212404"))


def digits_in_pairs(texts: Sequence[str]) -> list[list[int]]:
    return [[int(x[i : i + 2]) for i in range(0, len(x), 2)] for x in texts]


def test_a_large_book_has_unique_names_and_numbers() -> None:
    book = phonebook_records(60_000, seed=0)
    assert len({name for name, _ in book}) == len(book)
    assert len({number for _, number in book}) == len(book)
    assert all(len(number) == 10 and number.isdecimal() for _, number in book)
    assert all(name.count(" ") == 1 and name.replace(" ", "").isalpha() for name, _ in book)


def test_digits_are_uniform() -> None:
    n = 40_000
    numbers = [number for _, number in phonebook_records(n, seed=3)]
    first = Counter(number[0] for number in numbers)
    assert set(first) == set("6789")
    # Five standard deviations of a binomial count.
    assert all(abs(count - n / 4) < 5 * (n * 3 / 16) ** 0.5 for count in first.values())
    for place in range(1, 10):
        digits = Counter(number[place] for number in numbers)
        assert set(digits) == set("0123456789")
        assert all(abs(count - n / 10) < 5 * (n * 9 / 100) ** 0.5 for count in digits.values())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12_000), st.integers(1, 12_000), st.integers(0, 5))
def test_a_shorter_book_is_the_start_of_a_longer_one(a: int, b: int, sequence: int) -> None:
    short, long = sorted((a, b))
    assert phonebook_records(long, 1, sequence)[:short] == phonebook_records(short, 1, sequence)


def test_another_seed_or_sequence_is_another_book() -> None:
    books = [phonebook_records(300, seed, seq) for seed, seq in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    for i, book in enumerate(books):
        for other in books[:i]:
            assert len(set(book) & set(other)) == 0
    assert phonebook_records(300, 1, 1) == books[3]


def test_stored_books_stay_what_they_were() -> None:
    # A changed name list or draw would change what finished measurements were taken on.
    assert phonebook_records(2, seed=0) == GOLDEN


@pytest.mark.parametrize("n", [0, -1, MAX_RECORDS + 1])
def test_a_size_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"1 to {MAX_RECORDS}"):
        phonebook_records(n, seed=0)


@pytest.mark.parametrize(("seq_len", "size"), [(1, 1), (5, 1), (6, 2), (320, 64), (2001, 401)])
def test_size_is_the_fewest_entries_that_hold_the_tokens(seq_len: int, size: int) -> None:
    assert phonebook_size(seq_len, 0, 0, digits_in_pairs) == size


def test_more_tokens_than_all_names_can_carry_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmlray.memory.phonebook.MAX_RECORDS", 100)
    with pytest.raises(DataError, match=r"seq_len 501 .* 100 records hold 500 target tokens"):
        phonebook_size(501, 0, 0, digits_in_pairs)
