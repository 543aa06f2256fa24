"""Causal attention over rows laid end to end, without padding and without a mask tensor.

A micro-batch is one long sequence of rows; everything but attention works on single positions and
is independent of where a row ends. Rows of equal length lie together (a group) and are computed at
once. For many short rows on a CPU attention is computed as batched products of small fp32 matrices:
torch's flash kernel goes head by head, which costs more than the arithmetic of a short row. There
the query heads that share a key head lie end to end, and all rows are multiplied at once.

Shapes: T all positions, R rows of a group, N rows times key/value heads, L a row's positions, Q the
positions of all query heads that share a key head, H heads, G key/value heads, E head size, D
hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pmlray.engine.kernels.long_attention import long_attention

RowGroups = tuple[tuple[int, int], ...]
Rotary = tuple[Tensor, Tensor]
# On a CPU rows of up to this length use fp32, where it costs next to nothing: the error of their
# gradients is 3e-7 of the norm instead of 2e-3. Forward and backward of 9 heads over 128 rows of 22
# positions took 5.3 ms this way and 8.5 ms as for longer rows; 32 of 63 took 6.1 and 7.0, 21 of 96
# 8.0 and 5.9, 16 of 128 11.1 and 7.6.
CPU_SHORT_LENGTH = 96


class _Rotated(torch.autograd.Function):
    """Rotary position embedding, with a change to the layout and precision used in attention.

    Of x = (x1, x2), the halves of a head: y1 = c x1 - s x2, y2 = c x2 + s x1.
    """

    @staticmethod
    def forward(ctx: Any, x_RLHE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_LE, sin_LE)
        ctx.dtype = x_RLHE.dtype
        x_RHLE = x_RLHE.transpose(1, 2).to(
            cos_LE.dtype, copy=True, memory_format=torch.contiguous_format
        )
        return _turn(x_RHLE, cos_LE, sin_LE, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos_LE, sin_LE = ctx.saved_tensors
        back_RHLE = _turn(upstream[0], cos_LE, sin_LE, -1)
        back_RLHE = back_RHLE.transpose(1, 2).to(ctx.dtype, memory_format=torch.contiguous_format)
        return back_RLHE, None, None


def _turned(x_RLHE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Return queries or keys, (R, H, L, E), the first of whose E numbers are turned."""
    size = cos_LE.shape[-1]
    if size == x_RLHE.shape[-1]:
        return _Rotated.apply(x_RLHE, cos_LE, sin_LE)
    turned_RHLE = _Rotated.apply(x_RLHE[..., :size], cos_LE, sin_LE)
    rest_RHLE = x_RLHE[..., size:].transpose(1, 2).to(turned_RHLE.dtype)
    return torch.cat([turned_RHLE, rest_RHLE], dim=-1)


def _turn(x_RHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor, sign: int) -> Tensor:
    half = x_RHLE.shape[-1] // 2
    y_RHLE = x_RHLE * cos_LE
    y_RHLE[..., :half].addcmul_(x_RHLE[..., half:], sin_LE[:, :half], value=-sign)
    y_RHLE[..., half:].addcmul_(x_RHLE[..., :half], sin_LE[:, half:], value=sign)
    return y_RHLE


class RowAttention(nn.Module):
    """Replacement of the attention of a layer of Llama's shape, with frozen weights.

    It attends within rows where they are given, otherwise (in generation) as the original does.
    window: number of positions that it reaches back, the own one among them; None for all.
    """

    def __init__(self, attention: Any, window: int | None = None) -> None:
        super().__init__()
        self.attention = attention
        self._window = window

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Rotary,
        row_groups: RowGroups | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within rows, with hidden states (1, T, D); without rows as the original module.

        row_groups: (rows, length) of each group, in order.
        """
        own = self.attention
        if row_groups is None:
            return own(
                hidden_states=hidden_states, position_embeddings=position_embeddings, **kwargs
            )
        query_THE, key_TGE, value_TGE = _projected(own, hidden_states[0])
        rotary = None
        # Some layers of SmolLM3 know no positions.
        if getattr(own, "use_rope", True):
            rotary = (position_embeddings[0][0], position_embeddings[1][0])
        attended_THE = attend_rows(
            *(query_THE, key_TGE, value_TGE, rotary, row_groups),
            scale=own.scaling,
            window=self._window,
        )
        return own.o_proj(attended_THE.flatten(1))[None], None


def _projected(own: Any, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (T, H, E), keys and values (T, G, E) of an attention module."""
    size = own.head_dim
    if hasattr(own, "qkv_proj"):
        joint, keys = own.qkv_proj(hidden_TD), own.num_key_value_heads * size
        parts = joint.split([joint.shape[-1] - 2 * keys, keys, keys], dim=-1)
    else:
        parts = [own.q_proj(hidden_TD), own.k_proj(hidden_TD), own.v_proj(hidden_TD)]
    if not hasattr(own, "q_norm"):
        query, key, value = (part.unflatten(-1, (-1, size)) for part in parts)
        return query, key, value
    # Norms are of each head, or of all of them together.
    apart = own.q_norm.weight.shape[0] == size
    query, key, value = parts
    if not apart:
        query, key = own.q_norm(query), own.k_norm(key)
    query, key, value = (x.unflatten(-1, (-1, size)) for x in (query, key, value))
    if apart:
        query, key = own.q_norm(query), own.k_norm(key)
    return query, key, value


def future_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return where a position (row) must not attend to another (column), (L, L).

    That is to later ones, and to those `window` or more before it.
    """
    ones_LL = torch.ones(length, length, dtype=torch.bool, device=device)
    later_LL = ones_LL.triu(1)
    return later_LL if window is None else later_LL | ones_LL.tril(-window)


def attend_rows(
    query_THE: Tensor,
    key_TGE: Tensor,
    value_TGE: Tensor,
    rotary: Rotary | None,
    row_groups: RowGroups,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Compute causal attention within each row, (T, H, E) in the query's precision.

    rotary: cosine and sine at every position, (T, E) each, the same for all rows of a group; None
    where attention knows no positions. window: see RowAttention.
    """
    outputs, start = [], 0
    for rows, length in row_groups:
        query, key, value = (
            x[start : start + rows * length].unflatten(0, (rows, length))
            for x in (query_THE, key_TGE, value_TGE)
        )
        short = query.is_cpu and length <= CPU_SHORT_LENGTH
        dtype = torch.float32 if short else query.dtype
        value = value.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
        if rotary is None:
            turned, key = (x.transpose(1, 2).to(dtype).contiguous() for x in (query, key))
        else:
            cos_LE, sin_LE = (x[start : start + length] for x in rotary)
            if short:
                cos_LE, sin_LE = cos_LE.float(), sin_LE.float()
            # Some families turn in fp32 whatever the precision of the rest.
            turned, key = (_turned(x, cos_LE, sin_LE).to(dtype) for x in (query, key))
        start += rows * length
        reach = window if window is not None and window < length else None
        if short:
            attended_RHLE = short_attention(turned, key, value, scale=scale, window=reach)
        elif query.is_cpu and dtype == torch.bfloat16 and reach is None:
            attended_RHLE = long_attention(turned, key, value, scale=scale)
        else:
            mask_LL = None if reach is None else ~future_mask(length, reach, query.device)
            attended_RHLE = scaled_dot_product_attention(
                turned,
                key,
                value,
                mask_LL,
                is_causal=reach is None,
                scale=scale,
                enable_gqa=key.shape[1] != turned.shape[1],
            )
        outputs.append(attended_RHLE.transpose(1, 2).flatten(0, 1).to(query_THE.dtype))
    return torch.cat(outputs)


class _ShortAttention(torch.autograd.Function):
    """Attention of short rows, with its gradients.

    With P = softmax(s Q K^T) and O = P V: dV = P^T dO, dS = s P (dO V^T - sum_E dO O),
    dQ = dS K, dK = dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_NQE: Tensor,
        key_NLE: Tensor,
        value_NLE: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        length, n_query = key_NLE.shape[1], query_NQE.shape[1]
        future_LL = torch.full((length, length), float("-inf")).triu_(1)
        if window is not None:
            future_LL += torch.full((length, length), float("-inf")).tril_(-window)
        future_QL = future_LL.repeat(n_query // length, 1)
        score_NQL = torch.baddbmm(future_QL, query_NQE, key_NLE.transpose(1, 2), alpha=scale)
        share_NQL = torch.softmax(score_NQL, dim=-1)
        out_NQE = torch.bmm(share_NQL, value_NLE)
        ctx.save_for_backward(query_NQE, key_NLE, value_NLE, share_NQL, out_NQE)
        ctx.scale = scale
        return out_NQE

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
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
            None,
        )


def short_attention(
    query_RHLE: Tensor,
    key_RGLE: Tensor,
    value_RGLE: Tensor,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Compute causal attention within each row, (R, H, L, E), for contiguous fp32 CPU tensors.

    R rows, H heads, G key/value heads, each shared by H / G consecutive heads. window: see
    RowAttention.
    """
    rows, heads, length, size = query_RHLE.shape
    groups = key_RGLE.shape[1]
    query_NQE = query_RHLE.view(rows * groups, heads // groups * length, size)
    key_NLE, value_NLE = key_RGLE.flatten(0, 1), value_RGLE.flatten(0, 1)
    return _ShortAttention.apply(query_NQE, key_NLE, value_NLE, scale, window).view(
        query_RHLE.shape
    )
