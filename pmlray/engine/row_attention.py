"""Causal attention over rows laid end to end, without padding and without a mask tensor.

A micro-batch is one long sequence of rows; everything but attention works on single positions and
never sees where a row ends. Rows of equal length lie together (a group) and are attended to at
once. Shapes: B 1, H heads, G key/value heads, T all positions, E head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ROW_ATTENTION = "pmlray_rows"
RowGroups = tuple[tuple[int, int], ...]
# On a CPU torch's backward pass in bfloat16 is up to 7 times slower than in fp32 below this length.
CPU_FP32_LENGTH = 256


def row_attention(
    module: torch.nn.Module,
    query_BHTE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    attention_mask: Tensor | None,
    *,
    row_groups: RowGroups | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each row; the ordinary one when no rows are given (prefix, generation).

    row_groups: (rows, length) of each group, in order. Returns (1, T, H, E).
    """
    if row_groups is None:
        return sdpa_attention_forward(
            module, query_BHTE, key_BGTE, value_BGTE, attention_mask, scaling=scaling, **kwargs
        )
    heads, size = query_BHTE.shape[1], query_BHTE.shape[3]
    outputs, start = [], 0
    for rows, length in row_groups:
        part = slice(start, start + rows * length)
        start += rows * length
        query, key, value = (
            x[0, :, part].unflatten(1, (rows, length)).transpose(0, 1)
            for x in (query_BHTE, key_BGTE, value_BGTE)
        )
        if query.is_cpu and length <= CPU_FP32_LENGTH:
            query, key, value = query.float(), key.float(), value.float()
        attended = scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != heads,
        )
        attended = attended.transpose(1, 2).reshape(rows * length, heads, size)
        outputs.append(attended.to(query_BHTE.dtype))
    return torch.cat(outputs)[None], None


AttentionInterface.register(ROW_ATTENTION, row_attention)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)
