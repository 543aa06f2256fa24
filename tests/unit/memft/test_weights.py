"""MemFT weight rules against plain loops, and the properties that both rules share."""

from __future__ import annotations

import math
import random as random_module
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pmlray.memft import NO_ANCHOR, WindowState, threshold_weights, window_weights
from pmlray.types import Compat

LN2 = math.log(2)


@dataclass(frozen=True)
class Batch:
    nll: Tensor
    wrong: Tensor
    mask: Tensor


@st.composite
def batches(draw: st.DrawFn, max_rows: int = 4, max_positions: int = 12) -> Batch:
    """Right-padded rows with a prompt offset each; padding and prompt hold arbitrary values."""
    rows = draw(st.integers(1, max_rows))
    positions = draw(st.integers(1, max_positions))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = torch.Generator().manual_seed(seed)
    nll = torch.rand(rows, positions, generator=rng, dtype=torch.float64) * 3
    wrong = torch.rand(rows, positions, generator=rng) < draw(st.sampled_from([0.0, 0.1, 0.6]))
    start = torch.randint(0, positions + 1, (rows, 1), generator=rng)
    length = torch.randint(0, positions + 1, (rows, 1), generator=rng)
    at = torch.arange(positions)
    return Batch(nll, wrong, (at >= start) & (at < start + length))


def random_state(rows: int, seed: int) -> WindowState:
    rng = torch.Generator().manual_seed(seed)
    return WindowState(
        torch.randint(-1, 4, (rows,), generator=rng),
        torch.randint(0, 6, (rows,), generator=rng),
        1 + 0.5 * torch.randint(0, 7, (rows,), generator=rng).float(),
    )


def threshold_oracle(batch: Batch, p: float) -> list[list[float]]:
    return [
        [
            1.0 if supervised and loss > -math.log(p) else 0.0
            for loss, supervised in zip(losses, mask, strict=True)
        ]
        for losses, mask in zip(batch.nll.tolist(), batch.mask.tolist(), strict=True)
    ]


@dataclass
class RowState:
    """One sample's window state, as the paper's rule is written."""

    anchor: int = NO_ANCHOR
    patience: int = 0
    expansion: float = 1.0


def row_state(state: WindowState, b: int) -> RowState:
    return RowState(int(state.anchor[b]), int(state.patience[b]), float(state.expansion[b]))


def window_oracle(
    nll: list[float],
    wrong: list[bool],
    mask: list[bool],
    row: RowState,
    compat: Compat = "paper",
    fixed: bool = False,
) -> tuple[list[float], RowState]:
    supervised = [t for t, valid in enumerate(mask) if valid]
    errors = [t for t in supervised if wrong[t]]
    anchor = errors[0] - supervised[0] if errors else NO_ANCHOR
    patience = row.patience + 1 if errors and anchor == row.anchor else 0
    expansion = min(row.expansion + 0.5, 4.0) if patience >= 3 and not fixed else 1.0
    weights = [0.0] * len(nll)
    for t in supervised:
        phi = 1.0
        if errors:
            distance = t - errors[0]
            inside = distance < 50 * expansion
            if compat == "paper":
                phi = math.exp(-max(distance, 0) / 20) if inside else 0.01
            else:
                stretched = math.exp(-max(distance, 0) / (20 * expansion))
                phi = max(stretched, 0.01) if inside else 0.01
        weights[t] = phi / (1 + math.exp(-10 * (nll[t] - LN2)))
    return weights, RowState(anchor, patience, expansion)


@settings(deadline=None)
@given(batches(), st.sampled_from([0.2, 0.5, 0.9]))
def test_threshold_weights_agree_with_the_loop(batch: Batch, p: float) -> None:
    assert threshold_weights(batch.nll, batch.mask, p).tolist() == threshold_oracle(batch, p)


def test_a_token_at_exactly_p_is_active_only_below_it() -> None:
    cut = torch.tensor([[-math.log(0.5)]], dtype=torch.float64)
    supervised = torch.tensor([[True]])
    assert threshold_weights(cut, supervised).item() == 0
    assert threshold_weights(cut + 1e-9, supervised).item() == 1


def test_a_nan_loss_keeps_its_weight() -> None:
    nan = torch.tensor([[math.nan, 0.0]])
    weights = threshold_weights(nan, torch.tensor([[True, True]]))
    assert weights.tolist() == [[1.0, 0.0]]


@settings(deadline=None)
@given(batches(), st.integers(0, 1000), st.sampled_from(["paper", "mended"]))
def test_window_weights_agree_with_the_loop(batch: Batch, seed: int, compat: Compat) -> None:
    state = random_state(len(batch.nll), seed)
    fixed = torch.rand(len(batch.nll), generator=torch.Generator().manual_seed(seed)) < 0.5
    weights, new = window_weights(
        batch.nll, batch.wrong, batch.mask, state, fixed_B=fixed, compat=compat
    )
    for b in range(len(batch.nll)):
        row = row_state(state, b)
        expected, expected_row = window_oracle(
            batch.nll[b].tolist(), batch.wrong[b].tolist(), batch.mask[b].tolist(), row,
            compat, bool(fixed[b]),
        )  # fmt: skip
        assert weights[b].tolist() == pytest.approx(expected, rel=1e-12)
        assert row_state(new, b) == expected_row


@settings(deadline=None)
@given(batches(max_positions=300), st.floats(1, 4), st.floats(1, 4))
def test_a_wider_window_never_lowers_a_weight(batch: Batch, one: float, other: float) -> None:
    n = len(batch.nll)
    narrow, wide = (
        window_weights(
            batch.nll, batch.wrong, batch.mask,
            # Its first error stands still from now on, so the expansion grows by 0.5.
            WindowState(first_errors(batch), torch.full((n,), 5), torch.full((n,), expansion)),
        )[0]
        for expansion in sorted((one, other))
    )  # fmt: skip
    assert torch.all(wide >= narrow - 1e-12)


def first_errors(batch: Batch) -> Tensor:
    anchors = []
    for wrong, mask in zip(batch.wrong.tolist(), batch.mask.tolist(), strict=True):
        at = [t for t, valid in enumerate(mask) if valid]
        errors = [t for t in at if wrong[t]]
        anchors.append(errors[0] - at[0] if errors else NO_ANCHOR)
    return torch.tensor(anchors)


@pytest.mark.parametrize("compat", ["paper", "mended"])
def test_window_rule_over_many_steps_and_past_the_window(compat: Compat) -> None:
    positions = 260
    rng = torch.Generator().manual_seed(0)
    mask = torch.ones(1, positions, dtype=torch.bool)
    state, row = WindowState.fresh(1, "cpu"), RowState()
    seen_expansions = []
    for anchor in [7] * 14 + [8] + [NO_ANCHOR] * 5 + [8] * 5:
        nll = torch.rand(1, positions, generator=rng, dtype=torch.float64) * 2
        wrong = torch.zeros(1, positions, dtype=torch.bool)
        if anchor != NO_ANCHOR:
            wrong[0, anchor] = wrong[0, 200] = True
        weights, state = window_weights(nll, wrong, mask, state, compat=compat)
        expected, row = window_oracle(
            nll[0].tolist(), wrong[0].tolist(), mask[0].tolist(), row, compat
        )
        assert weights[0].tolist() == pytest.approx(expected, rel=1e-12)
        seen_expansions.append(float(state.expansion[0]))
    assert seen_expansions == (
        [1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4, 4, 4, 4, 4] + [1] + [1] * 5 + [1, 1, 1, 1.5, 2]
    )


@settings(deadline=None)
@given(batches(), st.integers(0, 1000))
def test_weights_are_bounded_detached_and_zero_where_masked(batch: Batch, seed: int) -> None:
    nll = batch.nll.clone().requires_grad_()
    state = random_state(len(nll), seed)
    for weights in (
        threshold_weights(nll, batch.mask),
        window_weights(nll, batch.wrong, batch.mask, state)[0],
    ):
        assert not weights.requires_grad
        assert weights.dtype == nll.dtype
        assert bool(((weights >= 0) & (weights <= 1)).all())
        assert not bool(weights[~batch.mask].any())


@settings(deadline=None)
@given(batches(), st.integers(0, 1000), st.integers(0, 5), st.integers(0, 5))
def test_padding_and_a_prompt_change_neither_weights_nor_state(
    batch: Batch, seed: int, left: int, right: int
) -> None:
    def pad(x: Tensor, value: float | bool) -> Tensor:
        return torch.nn.functional.pad(x, (left, right), value=value)

    state = random_state(len(batch.nll), seed)
    weights, new = window_weights(batch.nll, batch.wrong, batch.mask, state)
    padded_nll, padded_mask = pad(batch.nll, math.nan), pad(batch.mask, False)
    padded_weights, padded_new = window_weights(
        padded_nll, pad(batch.wrong, True), padded_mask, state
    )
    assert_same_weights(padded_weights, pad(weights, 0.0))
    assert_same_state(padded_new, new)
    assert torch.equal(
        threshold_weights(padded_nll, padded_mask),
        pad(threshold_weights(batch.nll, batch.mask), 0.0),
    )


@settings(deadline=None)
@given(batches(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_weights(
    batch: Batch, seed: int, random: random_module.Random
) -> None:
    order_list = list(range(len(batch.nll)))
    random.shuffle(order_list)
    order = torch.tensor(order_list)
    state = random_state(len(batch.nll), seed)
    weights, new = window_weights(batch.nll, batch.wrong, batch.mask, state)
    shuffled_weights, shuffled_new = window_weights(
        batch.nll[order], batch.wrong[order], batch.mask[order], state.gather(order)
    )
    assert_same_weights(shuffled_weights, weights[order])
    assert_same_state(shuffled_new, new.gather(order))
    assert torch.equal(
        threshold_weights(batch.nll[order], batch.mask[order]),
        threshold_weights(batch.nll, batch.mask)[order],
    )


def test_state_follows_the_sample_and_not_its_place_in_the_batch() -> None:
    n, positions = 5, 9
    rng = torch.Generator().manual_seed(3)
    mask = torch.ones(n, positions, dtype=torch.bool)
    shuffled = alone = WindowState.fresh(n, "cpu")
    for _ in range(12):
        nll = torch.rand(n, positions, generator=rng)
        wrong = torch.zeros(n, positions, dtype=torch.bool)
        # Samples 0 to 2 keep one error; the others' error moves.
        wrong[torch.arange(3), torch.arange(3)] = True
        wrong[3:, torch.randint(0, positions, (1,), generator=rng)] = True
        order = torch.randperm(n, generator=rng)
        for batch in order.split(2):
            _, rows = window_weights(nll[batch], wrong[batch], mask[batch], shuffled.gather(batch))
            shuffled = shuffled.scatter(batch, rows)
        _, alone = window_weights(nll, wrong, mask, alone)
    assert_same_state(shuffled, alone)
    assert alone.patience[:3].tolist() == [11, 11, 11]
    assert alone.expansion[:3].tolist() == [4.0, 4.0, 4.0]


def test_scatter_leaves_the_old_state_as_it_was() -> None:
    old = WindowState.fresh(3, "cpu")
    new = old.scatter(torch.tensor([1]), random_state(1, 0))
    assert_same_state(old, WindowState.fresh(3, "cpu"))
    assert_same_state(new.gather(torch.tensor([1])), random_state(1, 0))
    assert_same_state(new.gather(torch.tensor([0, 2])), WindowState.fresh(2, "cpu"))


def test_the_state_of_all_samples_is_refused_where_that_of_the_rows_is_needed() -> None:
    one_row = torch.ones(1, 4)
    mask = one_row.bool()
    with pytest.raises(ValueError, match="gather"):
        window_weights(one_row, mask, mask, WindowState.fresh(3, "cpu"))


def assert_same_weights(a: Tensor, b: Tensor) -> None:
    # Not bit for bit: torch takes another sigmoid for the elements that end a vector register.
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


def assert_same_state(a: WindowState, b: WindowState) -> None:
    for name in ("anchor", "patience", "expansion"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
