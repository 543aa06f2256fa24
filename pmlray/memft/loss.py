"""Weighted losses as sums, and the rule for batches in which no token has weight.

Shapes: B rows (samples), T positions, G groups of rows (one for each adapter).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NoActiveTokens = Literal["skip", "sft"]
_NEGLIGIBLE_WEIGHT = 1e-5


def weighted_nll_per_row(nll_BT: Tensor, w_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's sum of weight times loss (nats), and its sum of weights.

    nll_BT, w_BT: float (B, T). Returns (sum_B, weight_sum_B): never a mean, the caller normalises,
    so splitting a batch changes nothing. The gradient flows through nll_BT alone, and positions of
    weight 0 add nothing whatever they hold.
    """
    w_BT = w_BT.detach()
    terms_BT = torch.where(w_BT != 0, w_BT * nll_BT, 0.0)
    return terms_BT.sum(dim=1), w_BT.sum(dim=1)


def weighted_nll(nll_BT: Tensor, w_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch's sum of weight times loss (nats), and its sum of weights: two scalars.

    nll_BT, w_BT: float (B, T). As weighted_nll_per_row, over all rows.
    """
    sum_B, weight_sum_B = weighted_nll_per_row(nll_BT, w_BT)
    return sum_B.sum(), weight_sum_B.sum()


@torch.no_grad()
def fallback_weights(
    w_BT: Tensor, mask_BT: Tensor, group_B: Tensor, n_groups: int, rule: NoActiveTokens
) -> Tensor:
    """Apply a rule to the weights of groups whose total is about 0 (at most 1e-5).

    w_BT: float (B, T); mask_BT: bool (B, T), the supervised positions; group_B: int64 (B,), each
    row's group in 0 to n_groups - 1; rule: "skip" sets such a group's weights to 0 exactly, so it
    takes no step; "sft" sets them to the mask, a plain SFT step. Returns w_BT's shape and dtype.
    Source: "sft" is what the code of arXiv 2605.30260 does for OT and the sliding window; "skip"
    follows its equation.
    """
    total_G = w_BT.new_zeros(n_groups).index_add_(0, group_B, w_BT.sum(dim=1))
    inactive_B = (total_G <= _NEGLIGIBLE_WEIGHT)[group_B]
    fill_BT = torch.zeros_like(w_BT) if rule == "skip" else mask_BT.to(w_BT.dtype)
    return torch.where(inactive_B[:, None], fill_BT, w_BT)
