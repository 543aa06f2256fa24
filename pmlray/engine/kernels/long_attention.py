"""Causal attention over longer rows in bfloat16 on a CPU: torch's flash kernel with another
backward pass.

torch's backward pass goes head by head through small products, at a tenth of the machine's
arithmetic throughput. Here products are over blocks of queries, of several rows and all heads at
once; scores and softmax are recomputed in fp32, and factors of a product are bfloat16.

Shapes: R rows, H heads, G key/value heads, L a row's positions, E head size; of a block, B
positions, K positions up to its last, N rows times key/value heads, Q the positions of all query
heads that share a key head.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Measured with 9 heads and two threads: 4 rows of 1,013 positions, two at once, took 54 ms in
# blocks of 64, 45 of 128, 46 of 192; 8 rows of 513, four at once, 32, 29 and 26; torch's own
# backward pass 55 and 48.
BLOCK_POSITIONS = 128
# Scores of a block: twice as much exceeded the caches (45 -> 63 ms).
BLOCK_BYTES = 10 * 2**20


class _LongAttention(torch.autograd.Function):
    """Attention of longer rows, with its gradients.

    With P = softmax(s Q K^T) and O = P V: dV = P^T dO, dS = s P (dO V^T - sum_E dO O),
    dQ = dS K, dK = dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, query_RHLE: Tensor, key_RGLE: Tensor, value_RGLE: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query_RHLE, key_RGLE, value_RGLE)
        ctx.scale = scale
        return scaled_dot_product_attention(
            query_RHLE,
            key_RGLE,
            value_RGLE,
            is_causal=True,
            scale=scale,
            enable_gqa=key_RGLE.shape[1] != query_RHLE.shape[1],
        )

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        given = (*ctx.saved_tensors, upstream[0])
        query, key, value = (torch.empty_like(x) for x in ctx.saved_tensors)
        rows, heads, length, _ = upstream[0].shape
        most = max(1, BLOCK_BYTES // (heads * min(BLOCK_POSITIONS, length) * length * 4))
        with _bfloat16_factors():
            for start in range(0, rows, most):
                part = slice(start, start + most)
                query[part], key[part], value[part] = _gradients(
                    *(x[part] for x in given), scale=ctx.scale
                )
        return query, key, value, None


def _gradients(
    query_RHLE: Tensor, key_RGLE: Tensor, value_RGLE: Tensor, grad_RHLE: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, computed in blocks of queries."""
    rows, heads, length, size = query_RHLE.shape
    n, sharing = rows * key_RGLE.shape[1], heads // key_RGLE.shape[1]
    key_NLE, value_NLE = key_RGLE.flatten(0, 1).float(), value_RGLE.flatten(0, 1).float()
    to_query_RHLE = torch.empty_like(query_RHLE)
    to_key_NLE, to_value_NLE = torch.zeros_like(key_NLE), torch.zeros_like(value_NLE)
    most = min(BLOCK_POSITIONS, length)
    future_BB = torch.full((most, most), float("-inf")).triu_(1)
    # All blocks use the same memory, which stays in the caches.
    room, more_room = (torch.empty(n * sharing * most * length) for _ in range(2))
    for start in range(0, length, most):
        stop = min(start + most, length)
        b = stop - start
        query_NQE, grad_NQE = (
            x[:, :, start:stop].float().reshape(n, sharing * b, size)
            for x in (query_RHLE, grad_RHLE)
        )
        share_NQK, back_NQK = (
            x[: n * sharing * b * stop].view(n, sharing * b, stop) for x in (room, more_room)
        )
        key_NKE, value_NKE = key_NLE[:, :stop], value_NLE[:, :stop]
        torch.baddbmm(
            share_NQK, query_NQE, key_NKE.transpose(1, 2), beta=0, alpha=scale, out=share_NQK
        )
        share_NQK.view(n, sharing, b, stop)[..., start:] += future_BB[:b, :b]
        torch.softmax(share_NQK, dim=-1, out=share_NQK)
        to_value_NLE[:, :stop].baddbmm_(share_NQK.transpose(1, 2), grad_NQE)
        torch.bmm(grad_NQE, value_NKE.transpose(1, 2), out=back_NQK)
        torch.ops.aten._softmax_backward_data.out(
            back_NQK, share_NQK, -1, torch.float32, grad_input=back_NQK
        )
        to_key_NLE[:, :stop].baddbmm_(back_NQK.transpose(1, 2), query_NQE, alpha=scale)
        to_query_NQE = torch.bmm(back_NQK, key_NKE).mul_(scale)
        to_query_RHLE[:, :, start:stop] = to_query_NQE.view(rows, heads, b, size)
    shape = key_RGLE.shape
    return to_query_RHLE, to_key_NLE.view(shape), to_value_NLE.view(shape)


@contextmanager
def _bfloat16_factors() -> Generator[None]:
    """Multiply fp32 tensors with factors rounded to bfloat16 and sums in fp32, in this context.

    Only where the CPU has bfloat16 instructions.
    """
    onednn: Any = torch.backends.mkldnn
    products = onednn.matmul
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def long_attention(
    query_RHLE: Tensor, key_RGLE: Tensor, value_RGLE: Tensor, *, scale: float
) -> Tensor:
    """Compute causal attention within each row, (R, H, L, E), for contiguous bfloat16 CPU tensors.

    R rows, H heads, G key/value heads, each shared by H / G consecutive heads.
    """
    return _LongAttention.apply(query_RHLE, key_RGLE, value_RGLE, scale)
