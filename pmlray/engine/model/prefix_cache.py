"""Activations of the frozen part, computed once per record and shared by every adapter.

In a causal model the activations of a prefix are the prefix of the activations, so the cache of the
longest target serves every shorter one. The cache is exact because dropout comes after the
adapter's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmlray.design.packing import padded_batches
from pmlray.engine.model.base_model import BaseModel
from pmlray.memory import Record

PREFIX_BATCH_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class CachedRecord:
    """Cached activations and targets of one record.

    `hidden_TD` and `adapter_in_TX`: activations of prompt and target without the target's last
    token; `targets_L`: the L supervised ids; position `first` predicts the first of them, so
    T = first + L.
    """

    hidden_TD: Tensor
    adapter_in_TX: Tensor
    targets_L: Tensor
    first: int

    def shortened(self, n_targets: int) -> CachedRecord:
        """Return the record with only its first `n_targets` supervised tokens."""
        end = self.first + n_targets
        return CachedRecord(
            self.hidden_TD[:end], self.adapter_in_TX[:end], self.targets_L[:n_targets], self.first
        )

    def to(self, device: torch.device) -> CachedRecord:
        """Return the record on a device; itself where it is there already."""
        if self.hidden_TD.device == device:
            return self
        return CachedRecord(
            self.hidden_TD.to(device),
            self.adapter_in_TX.to(device),
            self.targets_L.to(device),
            self.first,
        )


def n_positions(record: Record) -> int:
    """Return a record's number of cached positions; its last target token predicts nothing."""
    return len(record.prompt_ids) + len(record.target_ids) - 1


def build_prefix_cache(base: BaseModel, records: Sequence[Record]) -> tuple[CachedRecord, ...]:
    """Run blocks 0..k once over every record, in padded batches of similar lengths."""
    ids = [(*record.prompt_ids, *record.target_ids[:-1]) for record in records]
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
                torch.tensor(records[i].target_ids, device=base.device),
                len(records[i].prompt_ids) - 1,
            )
    return tuple(cached[i] for i in range(len(records)))
