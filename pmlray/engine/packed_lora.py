"""Many LoRA adapters of mixed rank in one pair of tensors.

Shapes: N adapters, R rows of a batch, T positions, X adapter input width, D hidden size, K the
largest rank of the pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pmlray.engine.base_model import BaseModel


def initial_A(placement: str, width: int, lora_rank: int, seed: int) -> Tensor:
    """Initial A of one adapter, (X, r), drawn on the CPU from its own seed.

    `mlp` follows the paper's code, U(-1/sqrt(r), 1/sqrt(r)) (authors' code of arXiv 2605.30260);
    `down_proj` follows PEFT, U(-1/sqrt(X), 1/sqrt(X)). B starts at 0 in both.
    """
    bound = lora_rank**-0.5 if placement == "mlp" else width**-0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(width, lora_rank).uniform_(-bound, bound, generator=generator)


class PackedLora(nn.Module):
    """N adapters as A (N, X, K) and B (N, K, D); columns past an adapter's rank stay zero.

    They start at zero, and a zero column of A and row of B give each other zero gradients, so no
    mask is needed in a step. The scale is 1 (lora_alpha = r).
    """

    def __init__(self, base: BaseModel, ranks: Sequence[int], seeds: Sequence[int]) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        width, hidden = base.adapter_width, base.model.config.hidden_size
        largest = max(ranks)
        a = torch.zeros(len(ranks), width, largest)
        for n, (rank, seed) in enumerate(zip(ranks, seeds, strict=True)):
            a[n, :, :rank] = initial_A(base.probe.placement, width, rank, seed)
        b = torch.zeros(len(ranks), largest, hidden)
        self.A = nn.Parameter(a.to(base.device))
        self.B = nn.Parameter(b.to(base.device))

    def delta(self, adapter_in_RTX: Tensor, adapter_of_row_R: Tensor) -> Tensor:
        """What each row's adapter adds to its block output, (R, T, D), in fp32."""
        a = self.A[adapter_of_row_R]
        b = self.B[adapter_of_row_R]
        return torch.bmm(torch.bmm(adapter_in_RTX.to(a.dtype), a), b)

    def weights(self, n: int) -> tuple[Tensor, Tensor]:
        """A (X, r) and B (r, D) of adapter n, detached, without the padding to K."""
        rank = self.ranks[n]
        return self.A[n, :, :rank].detach().clone(), self.B[n, :rank].detach().clone()
