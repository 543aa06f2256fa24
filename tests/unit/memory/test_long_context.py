"""Long-context sequences: which positions are random, prefixes, stretches of text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.errors import DataError
from pmlray.memory import RANDOM_RATIOS, long_context_ids, replaced_positions

CLEAN = np.arange(5000, 9000)
TEXT = list(range(4000))  # No text id is a clean id, so a replaced position shows.


def ids(
    seq_len: int, ratio: int = 100, seed: int = 1, sequence: int = 0, text: list[int] | None = TEXT
) -> tuple[int, ...]:
    return long_context_ids(
        seq_len,
        clean_ids=CLEAN,
        random_ratio=ratio,
        data_seed=seed,
        sequence_id=sequence,
        text_ids=text,
    )


@pytest.mark.parametrize(
    ("ratio", "first_ten"),
    [
        (0, []),
        (20, [2, 7]),
        (40, [1, 3, 6, 8]),
        (60, [0, 2, 4, 5, 7, 9]),
        (80, [0, 1, 3, 4, 5, 6, 8, 9]),
        (100, list(range(10))),
    ],
)
def test_replaced_positions_are_evenly_spaced(ratio: int, first_ten: list[int]) -> None:
    assert np.flatnonzero(replaced_positions(10, ratio)).tolist() == first_ten
    assert replaced_positions(1000, ratio).sum() == 10 * ratio


@settings(deadline=None)
@given(st.integers(1, 300), st.sampled_from(RANDOM_RATIOS), st.integers(0, 9))
def test_text_survives_exactly_where_it_is_not_replaced(
    seq_len: int, ratio: int, sequence: int
) -> None:
    stretch = TEXT[sequence * seq_len : (sequence + 1) * seq_len]
    if len(stretch) < seq_len:
        return
    random_ids = ids(seq_len, 100, sequence=sequence)
    replaced = replaced_positions(seq_len, ratio).tolist()
    expected = [r if cut else t for r, cut, t in zip(random_ids, replaced, stretch, strict=True)]
    assert list(ids(seq_len, ratio, sequence=sequence)) == expected
    assert set(random_ids) <= set(CLEAN.tolist())


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000), st.sampled_from(RANDOM_RATIOS))
def test_a_shorter_sequence_is_the_prefix_of_a_longer_one(a: int, b: int, ratio: int) -> None:
    short, long = sorted((a, b))
    assert ids(long, ratio)[:short] == ids(short, ratio)


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 50))
def test_random_tokens_do_not_depend_on_the_length(a: int, b: int, sequence: int) -> None:
    short, long = sorted((a, b))
    assert ids(long, sequence=sequence)[:short] == ids(short, sequence=sequence)


def test_sequences_and_seeds_are_independent_and_stretches_disjoint() -> None:
    variants = [(1, 0), (1, 1), (0, 1), (2, 0), (2**32, 0)]
    drawn = {ids(200, 100, seed, sequence) for seed, sequence in variants}
    assert len(drawn) == len(variants)
    stretches = [set(ids(1000, 0, sequence=s)) for s in range(4)]
    assert set().union(*stretches) == set(TEXT)
    assert sum(map(len, stretches)) == len(TEXT)


def test_random_tokens_are_uniform_over_the_clean_ids() -> None:
    counts = np.bincount(np.array(ids(80_000)) - 5000, minlength=4000)
    # Chi-square with 3999 degrees of freedom: mean 3999, standard deviation 89; 5 of them.
    assert abs(((counts - 20) ** 2 / 20).sum() - 3999) < 5 * 89


def test_random_100_needs_no_text_and_less_does() -> None:
    assert ids(50, 100, text=None) == ids(50, 100)
    with pytest.raises(DataError, match="random_ratio 80 keeps part of a base text"):
        ids(50, 80, text=None)


def test_too_short_a_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"holds 4000 tokens; sequence_id 2 of seq_len 1500 .*4500"):
        ids(1500, 20, sequence=2)


@pytest.mark.parametrize("ratio", [-20, 10, 50, 120])
def test_another_ratio_is_refused(ratio: int) -> None:
    with pytest.raises(DataError, match=f"random_ratio is {ratio}"):
        ids(10, ratio)


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        ids(0)
