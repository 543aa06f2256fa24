"""Which runs have no usable result, and why."""

from __future__ import annotations

import math

import pytest

from pmlray.engine.evaluation.scores import TokenScores
from pmlray.engine.training.metrics import TrainedMember


def trained(*losses: float) -> TrainedMember:
    curve = tuple(enumerate(losses))
    return TrainedMember(0, curve, losses, TokenScores((), ()), 1.0, 1.0, 1.0, 1.0, (), len(losses))


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_divergence(last: float) -> None:
    assert "stopped being a number" in (trained(5.0, 4.0, last).divergence or "")


def test_so_is_one_far_above_the_bare_bases_and_nothing_less() -> None:
    assert "from 5 at its start" in (trained(5.0, 4.0, 11.1).divergence or "")
    # It has learnt nothing, which the law may know.
    assert trained(5.0, 20.0, 5.2).divergence is None
    # A base that knows the text already.
    assert trained(0.01, 0.5).divergence is None
