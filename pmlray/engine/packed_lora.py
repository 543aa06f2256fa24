"""Many LoRA adapters of mixed rank in one pair of tensors.

Shapes: N adapters, R rows of a batch, T positions of all rows, X adapter input width, D hidden
size, K the largest rank of the pack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pmlray.engine.base_model import BaseModel
from pmlray.engine.row_attention import RowGroups


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

    def delta(self, adapter_in_TX: Tensor, adapter_of_row_R: Tensor, groups: RowGroups) -> Tensor:
        """What each row's adapter adds to its block output, (T, D), in fp32.

        The T positions are rows end to end, `groups` their (rows, length).
        """
        a_RXK, b_RKD = self.A[adapter_of_row_R], self.B[adapter_of_row_R]
        x_TX = adapter_in_TX.to(a_RXK.dtype)
        parts, row, start = [], 0, 0
        for rows, length in groups:
            x = x_TX[start : start + rows * length].unflatten(0, (rows, length))
            a, b = a_RXK[row : row + rows], b_RKD[row : row + rows]
            parts.append(torch.bmm(torch.bmm(x, a), b).flatten(0, 1))
            row, start = row + rows, start + rows * length
        return torch.cat(parts)

    def weights(self, n: int) -> tuple[Tensor, Tensor]:
        """A (X, r) and B (r, D) of adapter n, detached, without the padding to K."""
        rank = self.ranks[n]
        return self.A[n, :, :rank].detach().clone(), self.B[n, :rank].detach().clone()
