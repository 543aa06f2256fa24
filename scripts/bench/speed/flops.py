"""Arithmetic of one optimiser step, counted from the shapes, and the machine's matmul peak.

A multiply-add is two operations. Matrix products alone count: norms, softmax, rotary positions and
the optimiser are left out. Attention is counted as a causal model needs it, each query with the
keys up to its own, and its backward pass without recomputing scores.

Symbols: T positions, N scored positions, L a row's positions, k the adapted layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmlray.config.bases.geometry import Geometry

PEAK_SIZE = 4096


@dataclass(frozen=True)
class StepShape:
    """One adapter's rows of a step: positions and scored tokens of each."""

    lengths: tuple[int, ...]
    scored: tuple[int, ...]

    def padded(self) -> StepShape:
        """As a rectangle, every row as long as the longest, every position scored."""
        longest = max(self.lengths)
        return StepShape((longest,) * len(self.lengths), (longest,) * len(self.lengths))


def mean_flops(
    way: str, geometry: Geometry, layer: int, rank: int, shapes: Sequence[StepShape]
) -> float:
    """Operations of an adapter-step of a way, on average over these steps."""
    count = {"packed": packed_step, "authors": authors_step, "full": full_step}[way]
    return sum(count(geometry, layer, rank, shape) for shape in shapes) / len(shapes)


def packed_step(geometry: Geometry, layer: int, rank: int, shape: StepShape) -> float:
    """Blocks above k forward and backward, the head at scored positions only: what a step needs."""
    above = geometry.n_layers - layer - 1
    body = above * (_layer_forward(geometry, shape) + _layer_backward(geometry, shape))
    return body + 2 * _head(geometry, sum(shape.scored)) + _lora(geometry, rank, shape)


def full_step(geometry: Geometry, layer: int, rank: int, shape: StepShape) -> float:
    """All blocks forward, those above k backward, the head at every position (shape: padded)."""
    above = geometry.n_layers - layer - 1
    body = geometry.n_layers * _layer_forward(geometry, shape)
    body += above * _layer_backward(geometry, shape)
    return body + 2 * _head(geometry, sum(shape.lengths)) + _lora(geometry, rank, shape)


def authors_step(geometry: Geometry, layer: int, rank: int, shape: StepShape) -> float:
    """As `full_step`, with A B made first, and one more forward pass without the adapter."""
    width, hidden, tokens = geometry.intermediate, geometry.hidden, sum(shape.lengths)
    without = geometry.n_layers * _layer_forward(geometry, shape) + _head(geometry, tokens)
    product = 6 * width * rank * hidden + 4 * tokens * width * hidden
    plain = full_step(geometry, layer, rank, shape) - _lora(geometry, rank, shape)
    return plain + product + without


def _layer_forward(geometry: Geometry, shape: StepShape) -> float:
    return 2 * sum(shape.lengths) * geometry.layer_weights + _attention(geometry, shape)


def _layer_backward(geometry: Geometry, shape: StepShape) -> float:
    # Frozen weights take no gradient; of an attention product both factors do.
    return 2 * sum(shape.lengths) * geometry.layer_weights + 2 * _attention(geometry, shape)


def _attention(geometry: Geometry, shape: StepShape) -> float:
    pairs = sum(length * (length + 1) / 2 for length in shape.lengths)
    return 4 * geometry.n_heads * geometry.head_dim * pairs


def _head(geometry: Geometry, positions: int) -> float:
    return 2 * positions * geometry.vocab * geometry.hidden


def _lora(geometry: Geometry, rank: int, shape: StepShape) -> float:
    """x A B forward; the gradients of A, of B and of x A. x takes none: it is a constant."""
    width, hidden = geometry.intermediate, geometry.hidden
    return sum(shape.lengths) * rank * (2 * (width + hidden) + 2 * width + 4 * hidden)


def matmul_flops(device: torch.device, dtype: torch.dtype, repeats: int) -> list[float]:
    """Operations per second of one large matrix product, once for each repeat."""
    n = PEAK_SIZE if device.type == "cpu" else 2 * PEAK_SIZE
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    found = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(1 if device.type == "cpu" else 20):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if repeat:
            found.append(2 * n**3 * (1 if device.type == "cpu" else 20) / seconds)
    return found
