"""Bits against cases that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmlray.errors import DataError
from pmlray.law.capacity import (
    adapter_params,
    phonebook_entropy,
    predicted_bits,
    stored_bits,
)
from pmlray.law.forms.power import PowerLaw


def test_a_text_that_is_known_by_heart_is_its_entropy() -> None:
    """100 tokens drawn evenly from 256 hold 800 bits; a base that knows nothing pays 8 bits each,
    an adapter that knows the text none."""
    bits = stored_bits(math.log(256), 100, 400, entropy_bits=800)
    assert bits.total == bits.verbatim == pytest.approx(800)
    assert bits.per_param == pytest.approx(2.0) and bits.share == pytest.approx(1.0)


def test_what_fresh_text_shows_is_no_verbatim_storage() -> None:
    """Of 8 bits a token, 3 went to learning that only 32 of 256 symbols occur."""
    bits = stored_bits(math.log(256), 100, 500, control_delta_loss=math.log(8), entropy_bits=500)
    assert bits.learnt == pytest.approx(300) and bits.verbatim == pytest.approx(500)
    assert bits.per_param == pytest.approx(1.0) and bits.share == pytest.approx(1.0)


def test_worse_on_fresh_text_adds_no_bits() -> None:
    bits = stored_bits(math.log(256), 100, 500, control_delta_loss=-3.0)
    assert (bits.total, bits.learnt, bits.verbatim) == pytest.approx((800, 0, 800))


def test_the_papers_own_figures() -> None:
    """Bits per parameter read off the paper's figure: 2.29 at rank 1, 0.79 at rank 24, both of
    10,000 tokens on a width of 4096 (delta_loss 1.30 and 10.8 nats within reading error)."""
    params = adapter_params(1, 4096, 4096)
    assert params == 8192
    assert stored_bits(1.30, 10_000, params).per_param == pytest.approx(2.29, abs=0.01)
    assert stored_bits(10.8, 10_000, 24 * params).per_param == pytest.approx(0.79, abs=0.01)


def test_phonebook_entropy() -> None:
    assert phonebook_entropy(1) == pytest.approx(31.9, abs=0.01)
    assert phonebook_entropy(100) == pytest.approx(100 * (2 + 9 * math.log2(10)))


def test_prediction_carries_the_laws_interval() -> None:
    law = PowerLaw(10.0, 0.5, 0.5, 0.0)
    samples = np.array([law.with_params([math.log(c), 0.5, 0.5, 0.0]).params for c in range(5, 16)])
    value, low, high = predicted_bits(law, samples, 4.0, 100.0, 0.0, level=0.8)
    assert value == pytest.approx(100 * 2.0 / math.log(2))
    assert (low, high) == pytest.approx((0.6 * value, 1.4 * value))


@pytest.mark.parametrize(
    "arguments", [(math.nan, 10, 10), (1.0, 0, 10), (1.0, 10, 0), (math.inf, 10, 10)]
)
def test_impossible_numbers_are_refused(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(DataError):
        stored_bits(*arguments)
