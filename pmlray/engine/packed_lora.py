"""Many LoRA adapters of mixed rank in one pair of tensors.

Shapes: N adapters in S slots, R rows of a batch, T positions of all rows, X adapter input width, D
hidden size, K the largest rank of the pack.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from pmlray.engine.base_model import BaseModel
from pmlray.engine.pack_state import State
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
    """N adapters as A (S, X, K) and B (S, K, D); columns past an adapter's rank stay zero.

    They start at zero, and a zero column of A and row of B give each other zero gradients, so no
    mask is needed in a step. The scale is 1 (lora_alpha = r).

    Where they are not held all at once, A and B have S < N slots: an adapter takes one when it
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
        # The adapter in each slot, and each adapter's slot; nothing that a framework moves.
        self._holders: list[int | None] = [None] * slots
        self._slot_N = torch.zeros(len(ranks), dtype=torch.int64, device=base.device)
        for n in range(slots):
            self._start(n, n)

    def slot_of(self, n: int) -> int:
        """The slot of an adapter; ValueError when it has none."""
        return self._holders.index(n)

    def slots_of(self, adapter_R: Tensor) -> Tensor:
        """The slots of adapters, int64 (R,)."""
        return self._slot_N[adapter_R]

    def begin(self, n: int, inside: Collection[int]) -> int:
        """Give adapter n, untrained, a slot that none of those `inside` holds; the slot."""
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

    def take_out(self) -> State:
        """What `put_back` needs."""
        return State({"A": self.A.data, "B": self.B.data}, {"holders": self._holders})

    @torch.no_grad()
    def put_back(self, state: State) -> None:
        """Go on from what `take_out` gave."""
        for name, values in self.named_parameters():
            values.copy_(state.tensors[name])
        self._holders = list(state.facts["holders"])
        for slot, n in enumerate(self._holders):
            if n is not None:
                self._slot_N[n] = slot

    def delta(self, adapter_in_TX: Tensor, adapter_of_row_R: Tensor, groups: RowGroups) -> Tensor:
        """What each row's adapter adds to its block output, (T, D), in fp32.

        The T positions are rows end to end, `groups` their (rows, length).
        """
        slot_R = self.slots_of(adapter_of_row_R)
        a_RXK, b_RKD = self.A[slot_R], self.B[slot_R]
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
        rank, slot = self.ranks[n], self.slot_of(n)
        return self.A[slot, :, :rank].detach().clone(), self.B[slot, :rank].detach().clone()
