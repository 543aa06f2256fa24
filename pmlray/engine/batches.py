"""Rows of many adapters, grouped into right-padded micro-batches of similar length.

Shapes: R rows, T positions, L supervised tokens of the longest row, N supervised tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmlray.engine.prefix_cache import CachedRecord

MAX_PADDING = 0.1
MAX_MICRO_BATCH_TOKENS = 16384


@dataclass(frozen=True, eq=False)
class Row:
    """One record of one adapter; `sample` numbers (adapter, record) pairs over the whole pack."""

    adapter: int
    sample: int
    record: CachedRecord


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows as tensors. `predict_N` indexes the flattened (R, T) positions that predict a supervised
    token, `slot_N` the flattened (R, L) slots in which per-token values are laid out."""

    rows: tuple[Row, ...]
    hidden_RTD: Tensor
    adapter_in_RTX: Tensor
    adapter_of_row_R: Tensor
    sample_of_row_R: Tensor
    predict_N: Tensor
    targets_N: Tensor
    slot_N: Tensor
    mask_RL: Tensor

    def lay_out(self, values_N: Tensor) -> Tensor:
        """Per-token values as (R, L), zero (False) where there is no token; keeps gradients."""
        flat = values_N.new_zeros(self.mask_RL.numel())
        return flat.index_put((self.slot_N,), values_N).view_as(self.mask_RL)


def micro_batches(rows: Sequence[Row]) -> tuple[MicroBatch, ...]:
    """Group rows so that each group wastes at most a tenth on padding and fits the token limit.

    Rows of one adapter keep their order, whatever else is in the pack.
    """
    groups: list[list[Row]] = []
    used = 0
    for row in sorted(rows, key=lambda row: -row.record.hidden_TD.shape[0]):
        length = row.record.hidden_TD.shape[0]
        if groups:
            longest = groups[-1][0].record.hidden_TD.shape[0]
            padded = longest * (len(groups[-1]) + 1)
            if used + length >= (1 - MAX_PADDING) * padded and padded <= MAX_MICRO_BATCH_TOKENS:
                groups[-1].append(row)
                used += length
                continue
        groups.append([row])
        used = length
    return tuple(_assemble(group) for group in groups)


def _assemble(rows: Sequence[Row]) -> MicroBatch:
    records = [row.record for row in rows]
    device = records[0].hidden_TD.device
    length = max(record.hidden_TD.shape[0] for record in records)
    slots = max(record.targets_L.shape[0] for record in records)
    predict, slot = [], []
    mask_RL = torch.zeros(len(rows), slots, dtype=torch.bool, device=device)
    for r, record in enumerate(records):
        n = record.targets_L.shape[0]
        predict.append(torch.arange(n, device=device) + (r * length + record.first))
        slot.append(torch.arange(n, device=device) + r * slots)
        mask_RL[r, :n] = True
    pad = torch.nn.utils.rnn.pad_sequence
    return MicroBatch(
        rows=tuple(rows),
        hidden_RTD=pad([record.hidden_TD for record in records], batch_first=True),
        adapter_in_RTX=pad([record.adapter_in_TX for record in records], batch_first=True),
        adapter_of_row_R=torch.tensor([row.adapter for row in rows], device=device),
        sample_of_row_R=torch.tensor([row.sample for row in rows], device=device),
        predict_N=torch.cat(predict),
        targets_N=torch.cat([record.targets_L for record in records]),
        slot_N=torch.cat(slot),
        mask_RL=mask_RL,
    )
