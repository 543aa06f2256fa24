"""Attention over rows without padding, against softmax written out in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pmlray.engine.row_attention import RowGroups, row_attention

HEADS, KV_HEADS, SIZE = 4, 2, 16
# A number rounded to bfloat16 is off by this share of itself at most.
ROUNDING = 2.0**-8


def random_inputs(groups: RowGroups) -> list[Tensor]:
    """Query, key, value and the gradient of the output, in bfloat16."""
    total = sum(rows * length for rows, length in groups)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, total, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    shapes.append((1, total, HEADS, SIZE))
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


def written_out(query: Tensor, key: Tensor, value: Tensor, groups: RowGroups) -> Tensor:
    """(1, T, H, E): row by row and head by head, every token over itself and those before it."""
    attended, start = [], 0
    for rows, length in groups:
        for _ in range(rows):
            part = slice(start, start + length)
            start += length
            of_heads = []
            for head in range(HEADS):
                shared = head * KV_HEADS // HEADS
                q, k, v = query[0, head, part], key[0, shared, part], value[0, shared, part]
                later = torch.ones(length, length, dtype=torch.bool).triu(1)
                logits = (q @ k.T / math.sqrt(SIZE)).masked_fill(later, -math.inf)
                of_heads.append(logits.softmax(-1) @ v)
            attended.append(torch.stack(of_heads, dim=1))
    return torch.cat(attended)[None]


def with_gradients(
    inputs: list[Tensor], attend: Callable[..., Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """The output of `attend` and the gradients of query, key and value, in double precision."""
    *qkv, of_output = inputs
    leaves = [x.to(dtype).requires_grad_() for x in qkv]
    output = attend(*leaves)
    grads = torch.autograd.grad(output, leaves, of_output.to(output.dtype))
    return [x.detach().double() for x in (output, *grads)]


def test_rows_of_up_to_256_tokens_attend_in_fp32_on_a_cpu() -> None:
    """Of inputs in bfloat16, results and gradients are the exact ones, rounded once."""
    groups = ((1, 256), (2, 100), (3, 5), (1, 1))
    inputs = random_inputs(groups)

    def rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended, _ = row_attention(nn.Module(), query, key, value, None, row_groups=groups)
        assert attended.dtype == torch.bfloat16
        return attended

    def in_bfloat16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts, start = [], 0
        for n, length in groups:
            for _ in range(n):
                part = [x[:, :, start : start + length] for x in (query, key, value)]
                start += length
                attended = scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
                parts.append(attended.transpose(1, 2))
        return torch.cat(parts, dim=1)

    exact = with_gradients(inputs, lambda *qkv: written_out(*qkv, groups), torch.float64)
    found = with_gradients(inputs, rows, torch.bfloat16)
    plain = with_gradients(inputs, in_bfloat16, torch.bfloat16)
    for name, true, own, other in zip(("output", *"qkv"), exact, found, plain, strict=True):
        limit = ROUNDING * true.abs() + 1e-5
        assert (own - true).abs().le(limit).all(), name
        assert not (other - true).abs().le(limit).all(), name
        assert (own - true).norm() < 0.9 * (other - true).norm(), name


def test_longer_rows_keep_to_themselves() -> None:
    """Beyond that length torch's own precision, and still no row sees another."""
    groups = ((2, 257),)
    inputs = random_inputs(groups)[:3]
    found, _ = row_attention(nn.Module(), *inputs, None, row_groups=groups)
    exact = written_out(*(x.double() for x in inputs), groups)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=0.02)
