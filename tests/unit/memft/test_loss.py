"""Weighted losses are sums that neither splits nor garbage under zero weight can change."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmlray.memft import NoActiveTokens, fallback_weights, weighted_nll, weighted_nll_per_row


def tensors(rows: int, positions: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    nll = torch.rand(rows, positions, generator=rng, dtype=torch.float64)
    weights = torch.rand(rows, positions, generator=rng, dtype=torch.float64)
    return nll, weights * (weights > 0.4)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000), st.integers(0, 6))
def test_sums_agree_with_the_loop_and_survive_a_split(
    rows: int, positions: int, seed: int, cut: int
) -> None:
    nll, weights = tensors(rows, positions, seed)
    row_sums, row_weights = weighted_nll_per_row(nll, weights)
    for b in range(rows):
        loop = sum(w * x for w, x in zip(weights[b].tolist(), nll[b].tolist(), strict=True))
        assert float(row_sums[b]) == pytest.approx(loop, abs=1e-12)
        assert float(row_weights[b]) == pytest.approx(sum(weights[b].tolist()), abs=1e-12)
    total, weight_total = weighted_nll(nll, weights)
    head, tail = weighted_nll(nll[:cut], weights[:cut]), weighted_nll(nll[cut:], weights[cut:])
    assert float(total) == pytest.approx(float(head[0] + tail[0]), abs=1e-12)
    assert float(weight_total) == pytest.approx(float(head[1] + tail[1]), abs=1e-12)


def test_the_gradient_is_the_weight_and_flows_through_the_loss_alone() -> None:
    nll, weights = tensors(3, 5, 0)
    nll.requires_grad_()
    weights.requires_grad_()
    weighted_nll(nll, weights)[0].backward()
    assert nll.grad is not None
    assert torch.equal(nll.grad, weights.detach())
    assert weights.grad is None


def test_zero_weight_silences_garbage_but_a_weighted_nan_shows() -> None:
    nll = torch.tensor([[1.0, math.nan, math.inf]], requires_grad=True)
    total, weight = weighted_nll(nll, torch.tensor([[2.0, 0.0, 0.0]]))
    total.backward()
    assert (total.item(), weight.item()) == (2.0, 2.0)
    assert nll.grad is not None
    assert nll.grad.tolist() == [[2.0, 0.0, 0.0]]
    assert math.isnan(weighted_nll(nll, torch.tensor([[2.0, 1.0, 0.0]]))[0].item())


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e-7, 1.0]),
    st.sampled_from(get_args(NoActiveTokens)),
)
def test_fallback_agrees_with_the_loop(
    groups: list[int], seed: int, scale: float, rule: NoActiveTokens
) -> None:
    positions, n_groups = 4, 5
    _, weights = tensors(len(groups), positions, seed)
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(weights.shape, generator=rng) < 0.7) | (weights > 0)
    # Groups 0 and 1 fade, together with what hypothesis chose; the others stay active.
    fading = torch.tensor(groups) < 2
    weights = torch.where(fading[:, None], weights * scale, weights)
    before = weights.clone()
    expected = []
    for b, group in enumerate(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        if sum(sum(before[i].tolist()) for i in members) > 1e-5:
            expected.append(before[b].tolist())
        elif rule == "sft":
            expected.append([float(x) for x in mask[b].tolist()])
        else:
            expected.append([0.0] * positions)
    result = fallback_weights(weights, mask, torch.tensor(groups), n_groups, rule)
    assert result.tolist() == expected
    assert result.dtype == weights.dtype
    assert torch.equal(weights, before)


def test_a_group_is_inactive_only_when_all_its_rows_are() -> None:
    weights = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    result = fallback_weights(weights, mask, torch.tensor([0, 0, 1]), 2, "sft")
    assert result.tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
