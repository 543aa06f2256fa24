"""Causal attention over many short rows on a CPU, as products of small matrices in fp32.

torch's flash kernel goes head by head, which costs more than the arithmetic of a short row. Here
the query heads that share a key head lie end to end, and all rows are multiplied at once.

Shapes: N rows times key/value heads, L a row's positions, Q the positions of all query heads that
share a key head, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ShortAttention(torch.autograd.Function):
    """With P = softmax(s Q K^T) and O = P V: dV = P^T dO, dS = s P (dO V^T - sum_E dO O),
    dQ = dS K, dK = dS^T Q."""

    @staticmethod
    def forward(
        ctx: Any, query_NQE: Tensor, key_NLE: Tensor, value_NLE: Tensor, scale: float
    ) -> Tensor:
        length, n_query = key_NLE.shape[1], query_NQE.shape[1]
        future_LL = torch.full((length, length), float("-inf")).triu_(1)
        future_QL = future_LL.repeat(n_query // length, 1)
        score_NQL = torch.baddbmm(future_QL, query_NQE, key_NLE.transpose(1, 2), alpha=scale)
        share_NQL = torch.softmax(score_NQL, dim=-1)
        out_NQE = torch.bmm(share_NQL, value_NLE)
        ctx.save_for_backward(query_NQE, key_NLE, value_NLE, share_NQL, out_NQE)
        ctx.scale = scale
        return out_NQE

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query_NQE, key_NLE, value_NLE, share_NQL, out_NQE = ctx.saved_tensors
        grad_NQE = upstream[0]
        along_NQ1 = torch.linalg.vecdot(grad_NQE, out_NQE)[..., None]
        back_NQL = torch.bmm(grad_NQE, value_NLE.transpose(1, 2))
        back_NQL.sub_(along_NQ1).mul_(share_NQL).mul_(ctx.scale)
        return (
            torch.bmm(back_NQL, key_NLE),
            torch.bmm(back_NQL.transpose(1, 2), query_NQE),
            torch.bmm(share_NQL.transpose(1, 2), grad_NQE),
            None,
        )


def short_attention(
    query_RHLE: Tensor, key_RGLE: Tensor, value_RGLE: Tensor, *, scale: float
) -> Tensor:
    """Causal attention within each row, (R, H, L, E), of contiguous fp32 tensors on a CPU.

    R rows, H heads, G key/value heads, each for H / G heads that follow one another.
    """
    rows, heads, length, size = query_RHLE.shape
    groups = key_RGLE.shape[1]
    query_NQE = query_RHLE.view(rows * groups, heads // groups * length, size)
    key_NLE, value_NLE = key_RGLE.flatten(0, 1), value_RGLE.flatten(0, 1)
    return _ShortAttention.apply(query_NQE, key_NLE, value_NLE, scale).view(query_RHLE.shape)
