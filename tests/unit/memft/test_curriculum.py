"""The curriculum's share of records over a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.memft import curriculum_order, paper_curriculum, prefix_ratio_curriculum


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 20))
def test_default_stages_are_those_of_the_paper(n_records: int, steps_per_epoch: int) -> None:
    train_steps = 300 * steps_per_epoch
    for epoch, fifths in [(0, 1), (19, 1), (20, 2), (39, 2), (40, 3), (60, 4), (80, 5), (299, 5)]:
        in_play = prefix_ratio_curriculum(n_records, epoch * steps_per_epoch, train_steps)
        assert in_play == max(1, n_records * fifths // 5)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 400))
def test_records_only_ever_come_into_play(n_records: int, train_steps: int) -> None:
    sizes = [prefix_ratio_curriculum(n_records, step, train_steps) for step in range(train_steps)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    assert prefix_ratio_curriculum(n_records, train_steps, train_steps) == n_records


def test_other_stages_and_their_lengths() -> None:
    stages = {"boundaries": (0.5,), "ratios": (0.25, 1.0)}
    assert prefix_ratio_curriculum(8, 4, 10, **stages) == 2
    assert prefix_ratio_curriculum(8, 5, 10, **stages) == 8
    with pytest.raises(ValueError, match="1 boundaries need 2 ratios"):
        prefix_ratio_curriculum(8, 5, 10, boundaries=(0.5,), ratios=(1.0,))


def test_order_is_a_seeded_permutation() -> None:
    order = curriculum_order(100, 7)
    assert sorted(order.tolist()) == list(range(100))
    assert np.array_equal(order, curriculum_order(100, 7))
    assert not np.array_equal(order, curriculum_order(100, 8))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 8))
def test_papers_curriculum_is_its_epoch_loop(n: int, batch: int, epochs_of_a_phase: int) -> None:
    """Every phase's epochs run one after another, each over whole batches of its prefix."""
    batch = min(batch, n)
    epochs = 15 * epochs_of_a_phase
    in_play = []
    for epoch in range(epochs):
        ratio = next(r for r, end in zip((0.2, 0.4, 0.6, 0.8, 1.0), (1, 2, 3, 4, 15), strict=True)
                     if epoch < end * epochs_of_a_phase)  # fmt: skip
        batches = max(1, int(n * ratio) // batch)
        in_play += [batches * batch] * batches
    found = [paper_curriculum(n, step, len(in_play), batch) for step in range(len(in_play))]
    assert found == in_play
