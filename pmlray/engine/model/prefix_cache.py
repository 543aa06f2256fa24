"""Activations of the frozen prefix, computed once per record and shared by every adapter.

In a causal model the activations of a prefix are the prefix of the activations, so the cache of the
longest target serves every shorter one. The cache is exact because dropout comes after the
adapter's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pmlray.design.packing import padded_batches
from pmlray.engine.model.base_model import BaseModel
from pmlray.memory import Record

PREFIX_BATCH_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class CachedRecord:
    """Cached activations and targets of one record.

    `hidden_TD` and `adapter_in_TX`: the prefix's output and the kept sites' inputs (no columns
    without one), of the prompt and of the supervised tokens without the last; `targets_L`: the L
    supervised ids; position `first` predicts the first of them, so T = first + L. `ends`: True if
    the last supervised token is the end that follows the target.
    """

    hidden_TD: Tensor
    adapter_in_TX: Tensor
    targets_L: Tensor
    first: int
    ends: bool = False

    @property
    def n_supervised(self) -> int:
        """Supervised tokens L, the end among them."""
        return self.targets_L.shape[0]

    @property
    def n_targets(self) -> int:
        """Tokens of the target, without the end."""
        return self.n_supervised - self.ends

    def shortened(self, n_targets: int) -> CachedRecord:
        """Return the record with only the first `n_targets` tokens of its target, and its end."""
        if n_targets == self.n_targets:
            return self
        cut = self.truncated(n_targets + self.ends)
        if not self.ends:
            return cut
        targets_L = torch.cat([self.targets_L[:n_targets], self.targets_L[-1:]])
        return replace(cut, targets_L=targets_L, ends=True)

    def truncated(self, n_supervised: int) -> CachedRecord:
        """Return the record with nothing after its first `n_supervised` supervised tokens."""
        end = self.first + n_supervised
        return CachedRecord(
            self.hidden_TD[:end],
            self.adapter_in_TX[:end],
            self.targets_L[:n_supervised],
            self.first,
            self.ends and n_supervised == self.n_supervised,
        )

    def to(self, device: torch.device) -> CachedRecord:
        """Return the record on a device; itself where it is there already."""
        if self.hidden_TD.device == device:
            return self
        return replace(
            self,
            hidden_TD=self.hidden_TD.to(device),
            adapter_in_TX=self.adapter_in_TX.to(device),
            targets_L=self.targets_L.to(device),
        )


def n_positions(record: Record) -> int:
    """Return a record's number of cached positions; its last supervised token predicts nothing."""
    return len(record.prompt_ids) + len(record.supervised_ids) - 1


def build_prefix_cache(base: BaseModel, records: Sequence[Record]) -> tuple[CachedRecord, ...]:
    """Run the prefix once over every record, in padded batches of similar lengths."""
    ids = [(*record.prompt_ids, *record.supervised_ids[:-1]) for record in records]
    cached: dict[int, CachedRecord] = {}
    for batch in padded_batches([len(row) for row in ids], PREFIX_BATCH_TOKENS):
        longest = max(len(ids[i]) for i in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long, device=base.device)
        for slot, i in enumerate(batch):
            ids_BT[slot, : len(ids[i])] = torch.tensor(ids[i], device=base.device)
        hidden_BTD, adapter_in_BTX = base.run_prefix(ids_BT)
        for slot, i in enumerate(batch):
            used = len(ids[i])
            cached[i] = CachedRecord(
                # A slice would keep the whole padded batch alive.
                hidden_BTD[slot, :used].clone(),
                adapter_in_BTX[slot, :used].clone(),
                torch.tensor(records[i].supervised_ids, device=base.device),
                len(records[i].prompt_ids) - 1,
                records[i].end_id is not None,
            )
    return tuple(cached[i] for i in range(len(records)))
