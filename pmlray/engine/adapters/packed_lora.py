"""LoRA adapters of mixed ranks in one pair of tensors.

Shapes: N adapters in S slots, R rows of a batch, T positions of all rows, P those of an adapter's
rows in a block, X adapter input width, D hidden size, K the largest rank of the pack.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.runtime.pack_state import PackState


def initial_A(placement: str, width: int, lora_rank: int, seed: int) -> Tensor:
    """Return the initial A of one adapter, (X, r), drawn on the CPU from its own seed.

    `mlp` follows the paper's code, U(-1/sqrt(r), 1/sqrt(r)) (authors' code of arXiv 2605.30260);
    `down_proj` follows PEFT, U(-1/sqrt(X), 1/sqrt(X)). B starts at 0 in both.
    """
    bound = lora_rank**-0.5 if placement == "mlp" else width**-0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(width, lora_rank).uniform_(-bound, bound, generator=generator)


class PackedLora(nn.Module):
    """N adapters as A (S, X, K) and B (S, K, D); columns past an adapter's rank stay zero.

    The padding starts at zero, and a zero column of A and row of B give each other zero gradients,
    so no mask is needed in a step. The scale is 1 (lora_alpha = r).

    Where not all adapters train at once, A and B have S < N slots: an adapter takes one when it
    begins, and can be read until another takes it.
    """

    def __init__(
        self,
        base: BaseModel,
        ranks: Sequence[int],
        seeds: Sequence[int],
        n_slots: int | None = None,
    ) -> None:
        super().__init__()
        self.ranks, self._seeds = tuple(ranks), tuple(seeds)
        self._placement, largest = base.probe.placement, max(ranks)
        slots = len(ranks) if n_slots is None else n_slots
        self.A = nn.Parameter(torch.zeros(slots, base.adapter_width, largest, device=base.device))
        hidden = base.model.config.hidden_size
        self.B = nn.Parameter(torch.zeros(slots, largest, hidden, device=base.device))
        # The adapter in each slot, and each adapter's slot; not registered, so no framework moves
        # them.
        self._holders: list[int | None] = [None] * slots
        self._slot_N = torch.zeros(len(ranks), dtype=torch.int64, device=base.device)
        for n in range(slots):
            self._start(n, n)

    def slot_of(self, n: int) -> int:
        """Return the slot of an adapter; ValueError when it has none."""
        return self._holders.index(n)

    def slots_of(self, adapter_R: Tensor) -> Tensor:
        """Return the slots of adapters, int64 (R,)."""
        return self._slot_N[adapter_R]

    def begin(self, n: int, inside: Collection[int]) -> int:
        """Put untrained adapter n into a slot held by none of those `inside`; return the slot."""
        if n in self._holders:
            return self.slot_of(n)
        slot = next(s for s, holder in enumerate(self._holders) if holder not in inside)
        self._start(n, slot)
        return slot

    @torch.no_grad()
    def _start(self, n: int, slot: int) -> None:
        rank = self.ranks[n]
        self.A[slot], self.B[slot] = 0, 0
        a = initial_A(self._placement, self.A.shape[1], rank, self._seeds[n])
        self.A[slot, :, :rank] = a.to(self.A.device)
        self._holders[slot], self._slot_N[n] = n, slot

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState({"A": self.A.data, "B": self.B.data}, {"holders": self._holders})

    @torch.no_grad()
    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        for name, values in self.named_parameters():
            values.copy_(state.tensors[name])
        self._holders = list(state.facts["holders"])
        for slot, n in enumerate(self._holders):
            if n is not None:
                self._slot_N[n] = slot

    def delta(self, batch: MicroBatch) -> Tensor:
        """Return each row's adapter output, added to its block's output, (T, D), in fp32."""
        x_TX = batch.adapter_in_TX.to(self.A.dtype)
        parts, row, start = [], 0, 0
        for block in batch.blocks:
            adapter_N = batch.adapter_of_row_R[row : row + block.rows : block.rows_of_each]
            a_NXK, b_NKD = self._of(block.adapters, adapter_N)
            x = x_TX[start : start + block.rows * block.length]
            x_NPX = x.unflatten(0, (len(block.adapters), -1))
            parts.append(torch.bmm(torch.bmm(x_NPX, a_NXK), b_NKD).flatten(0, 1))
            row, start = row + block.rows, start + block.rows * block.length
        return torch.cat(parts)

    def _of(self, adapters: tuple[int, ...], adapter_N: Tensor) -> tuple[Tensor, Tensor]:
        # All slots in order need no gather: its copies would cost more than the products.
        if list(adapters) == self._holders:
            return self.A, self.B
        slot_N = self.slots_of(adapter_N)
        return self.A[slot_N], self.B[slot_N]

    def weights(self, n: int) -> tuple[Tensor, Tensor]:
        """Return A (X, r) and B (r, D) of adapter n, detached, without the padding to K."""
        rank, slot = self.ranks[n], self.slot_of(n)
        return self.A[slot, :, :rank].detach().clone(), self.B[slot, :rank].detach().clone()
