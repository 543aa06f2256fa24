"""Attention over rows without padding, against softmax written out in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

from pmlray.engine.kernels import long_attention
from pmlray.engine.kernels.row_attention import RowAttention, RowGroups, attend_rows

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


def written_out(
    query: Tensor, key: Tensor, value: Tensor, groups: RowGroups, window: int | None = None
) -> Tensor:
    """(1, T, H, E): row by row and head by head, every token over itself and those before it.

    With a window over that many at most, itself among them.
    """
    attended, start = [], 0
    for rows, length in groups:
        for _ in range(rows):
            part = slice(start, start + length)
            start += length
            of_heads = []
            for head in range(HEADS):
                shared = head * KV_HEADS // HEADS
                q, k, v = query[0, head, part], key[0, shared, part], value[0, shared, part]
                apart = torch.arange(length)[:, None] - torch.arange(length)
                later = (apart < 0) | (apart >= (window or length))
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


def unturned(
    query: Tensor, key: Tensor, value: Tensor, groups: RowGroups, window: int | None = None
) -> Tensor:
    """`attend_rows` on (1, heads, T, E) without a turn for the position, (1, T, H, E)."""
    total = query.shape[2]
    rotary = (query.new_ones(total, SIZE), query.new_zeros(total, SIZE))
    parts = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_rows(*parts, rotary, groups, scale=SIZE**-0.5, window=window)[None]


def by_torch(query: Tensor, key: Tensor, value: Tensor, groups: RowGroups) -> Tensor:
    """Row by row in the inputs' precision, (1, T, H, E)."""
    parts, start = [], 0
    for n, length in groups:
        for _ in range(n):
            part = [x[:, :, start : start + length] for x in (query, key, value)]
            start += length
            attended = scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True)
            parts.append(attended.transpose(1, 2))
    return torch.cat(parts, dim=1)


def test_rows_of_up_to_96_tokens_attend_in_fp32_on_a_cpu() -> None:
    """Of inputs in bfloat16, results and gradients are the exact ones, rounded once."""
    groups = ((2, 96), (3, 5), (1, 1))
    inputs = random_inputs(groups)

    def rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = unturned(query, key, value, groups)
        assert attended.dtype == torch.bfloat16
        return attended

    exact = with_gradients(inputs, lambda *qkv: written_out(*qkv, groups), torch.float64)
    found = with_gradients(inputs, rows, torch.bfloat16)
    plain = with_gradients(inputs, lambda *qkv: by_torch(*qkv, groups), torch.bfloat16)
    for name, true, own, other in zip(("output", *"qkv"), exact, found, plain, strict=True):
        limit = ROUNDING * true.abs() + 1e-5
        assert (own - true).abs().le(limit).all(), name
        assert not (other - true).abs().le(limit).all(), name
        assert (own - true).norm() < 0.9 * (other - true).norm(), name


@pytest.mark.parametrize("room", [10 * 2**20, 300_000], ids=["together", "in parts"])
def test_longer_rows_in_bfloat16_are_as_exact_as_torchs(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of less than a block, of whole blocks and of a piece more."""
    monkeypatch.setattr(long_attention, "BLOCK_BYTES", room)
    products = torch.backends.mkldnn.matmul
    for groups in (((1, 97),), ((2, 256),), ((3, 300),)):
        inputs = random_inputs(groups)
        exact = with_gradients(inputs, lambda *qkv, at=groups: written_out(*qkv, at), torch.float64)
        before = products.fp32_precision
        found = with_gradients(inputs, lambda *qkv, at=groups: unturned(*qkv, at), torch.bfloat16)
        assert products.fp32_precision == before
        plain = with_gradients(inputs, lambda *qkv, at=groups: by_torch(*qkv, at), torch.bfloat16)
        for name, true, own, other in zip(("output", *"qkv"), exact, found, plain, strict=True):
            off = (own - true).norm()
            assert off < ROUNDING * true.norm(), (groups, name)
            assert off < 1.05 * (other - true).norm(), (groups, name)


def test_longer_rows_in_fp32_stay_in_fp32() -> None:
    groups = ((2, 300),)
    inputs = random_inputs(groups)
    exact = with_gradients(inputs, lambda *qkv: written_out(*qkv, groups), torch.float64)
    found = with_gradients(inputs, lambda *qkv: unturned(*qkv, groups), torch.float32)
    for true, own in zip(exact, found, strict=True):
        assert (own - true).norm() < 1e-5 * true.norm()


@pytest.mark.parametrize("window", [2, 7, 96, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_shorter_and_longer_than_rows(window: int, dtype: torch.dtype) -> None:
    groups = ((2, 128), (3, 96), (2, 5))
    inputs = random_inputs(groups)
    exact = with_gradients(inputs, lambda *qkv: written_out(*qkv, groups, window), torch.float64)
    found = with_gradients(inputs, lambda *qkv: unturned(*qkv, groups, window), dtype)
    for true, own in zip(exact, found, strict=True):
        limit = 1e-5 if dtype == torch.float32 else ROUNDING
        assert (own - true).norm() <= limit * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_positions_nothing_is_turned(dtype: torch.dtype) -> None:
    groups = ((2, 128), (3, 9))
    inputs = random_inputs(groups)

    def plain(*qkv: Tensor) -> Tensor:
        parts = (x[0].transpose(0, 1) for x in qkv)
        return attend_rows(*parts, None, groups, scale=SIZE**-0.5)[None]

    turned = with_gradients(inputs, lambda *qkv: unturned(*qkv, groups), dtype)
    for own, same in zip(with_gradients(inputs, plain, dtype), turned, strict=True):
        assert torch.equal(own, same)


def test_a_part_of_each_head_is_turned_as_alone() -> None:
    """The rest of a head adds what it adds without positions: scores are sums over both."""
    groups, turned = ((3, 9),), SIZE // 2
    query, key, value = (x[0].transpose(0, 1).double() for x in random_inputs(groups)[:3])
    angle = torch.arange(27)[:, None] % 9 * torch.linspace(1, 0.1, turned // 2, dtype=torch.float64)
    rotary = tuple(torch.cat([f(angle), f(angle)], dim=1) for f in (torch.cos, torch.sin))
    found = attend_rows(query, key, value, rotary, groups, scale=SIZE**-0.5)
    cos, sin = (x[:, None] for x in rotary)

    def by_hand(x: Tensor) -> Tensor:
        first, second = x[..., : turned // 2], x[..., turned // 2 : turned]
        around = torch.cat([-second, first], dim=-1)
        return torch.cat([x[..., :turned] * cos + around * sin, x[..., turned:]], dim=-1)

    heads = (x.transpose(0, 1)[None] for x in (by_hand(query), by_hand(key), value))
    assert torch.allclose(found, written_out(*heads, groups)[0], rtol=1e-5, atol=1e-6)


def test_what_was_said_of_products_holds_again_after_one_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Tensor, scale: float) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(long_attention, "_gradients", fails)
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    groups = ((1, 97),)
    with pytest.raises(MemoryError, match="no room"):
        with_gradients(random_inputs(groups), lambda *qkv: unturned(*qkv, groups), torch.bfloat16)
    assert products.fp32_precision == before


def test_positions_turn_queries_and_keys_by_their_angle() -> None:
    """What two tokens are to each other then depends on how far they are apart, (q R_a) . (k R_b)
    = q R_(b - a) k: complex numbers, written out."""
    n, half = 9, SIZE // 2
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(n, 1, SIZE, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    )
    angles = torch.arange(n)[:, None] * torch.linspace(0.1, 1.0, half, dtype=torch.float64)
    rotary = (angles.cos().repeat(1, 2), angles.sin().repeat(1, 2))
    turned = [
        torch.complex(x[:, 0, :half], x[:, 0, half:]) * torch.polar(torch.ones_like(angles), angles)
        for x in (query, key)
    ]
    logits = (turned[0] @ turned[1].conj().T).real / 4
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    expected = logits.masked_fill(later, -math.inf).softmax(-1) @ value[:, 0]
    # Precision is kept where it is more than fp32 only beyond the length that goes by fp32.
    found = attend_rows(query, key, value, rotary, ((1, n),), scale=0.25)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(n, SIZE, generator=generator, dtype=torch.float64)
    for mine, true in zip(
        torch.autograd.grad(found, (query, key, value), upstream),
        torch.autograd.grad(expected, (query, key, value), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


SHAPE: dict[str, Any] = {
    "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 1, "attn_implementation": "sdpa",
}  # fmt: skip


@pytest.mark.parametrize(
    ("attention", "rotary", "config"),
    [
        (LlamaAttention, LlamaRotaryEmbedding, LlamaConfig(**SHAPE, attention_bias=True)),
        (Qwen3Attention, Qwen3RotaryEmbedding, Qwen3Config(**SHAPE)),
    ],
    ids=["llama", "qwen3"],
)
def test_every_row_is_what_the_models_own_attention_makes_of_it(
    attention: Any, rotary: Any, config: Any
) -> None:
    torch.manual_seed(0)
    theirs = attention(config, layer_idx=0).requires_grad_(False).eval()
    for values in theirs.parameters():
        values.uniform_(-0.5, 0.5)
    groups = ((2, 7), (1, 300), (1, 1))
    lengths = [length for rows, length in groups for _ in range(rows)]
    hidden = torch.randn(1, sum(lengths), 24).requires_grad_()
    upstream = torch.randn_like(hidden)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    turns = rotary(config)
    ours = RowAttention(theirs)
    found, _ = ours(hidden, turns(hidden, positions), row_groups=groups)
    expected = []
    for row in hidden.split(lengths, dim=1):
        position_embeddings = turns(row, torch.arange(row.shape[1])[None])
        expected.append(theirs(row, position_embeddings, None)[0])
        again, _ = ours(row, position_embeddings, attention_mask=None)
        assert torch.equal(again, expected[-1])
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    (mine,) = torch.autograd.grad(found, hidden, upstream)
    (other,) = torch.autograd.grad(torch.cat(expected, dim=1), hidden, upstream)
    torch.testing.assert_close(mine, other)
