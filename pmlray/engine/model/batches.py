"""Rows of many adapters, laid end to end in micro-batches without padding.

Shapes: R rows, T positions of all rows together, L supervised tokens of the longest row, N
supervised tokens in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from pmlray.engine.kernels.row_attention import RowGroups
from pmlray.engine.model.device import on_device
from pmlray.engine.model.prefix_cache import CachedRecord

MAX_MICRO_BATCH_TOKENS = 16384
# On a CPU larger batches only take more memory: their tensors exceed the caches anyway.
CPU_MICRO_BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Row:
    """One record of one adapter; `sample` numbers the pack's (adapter, record) pairs.

    `scored`: ascending indices of the supervised tokens that are scored, None for all of them.
    `placed`: number of the adapter's placement in the pack; rows of one lie together.
    """

    adapter: int
    sample: int
    record: CachedRecord
    scored: tuple[int, ...] | None = None
    placed: int = 0

    @property
    def length(self) -> int:
        """Positions of the row, prompt included."""
        return self.record.hidden_TD.shape[0]

    @property
    def n_scored(self) -> int:
        """Supervised tokens that are scored."""
        return self.record.n_supervised if self.scored is None else len(self.scored)


@dataclass(frozen=True)
class Block:
    """Rows of one length, end to end: `rows_of_each` rows of each adapter, in order."""

    adapters: tuple[int, ...]
    rows_of_each: int
    length: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.adapters) * self.rows_of_each


def blocks_of(rows: Iterable[tuple[int, int]]) -> tuple[Block, ...]:
    """Group rows, each (adapter, length), into the fewest blocks that keep their order."""
    runs = [(*row, len(list(same))) for row, same in groupby(rows)]
    return tuple(
        Block(tuple(adapter for adapter, _, _ in alike), count, length)
        for (length, count), alike in groupby(runs, key=lambda run: run[1:])
    )


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows as tensors, longest first.

    `predict_N` indexes the T positions that predict a supervised token, `slot_N` the flattened
    (R, L) slots in which per-token values are laid out.
    """

    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    hidden_TD: Tensor
    adapter_in_TX: Tensor
    positions_T: Tensor
    adapter_of_row_R: Tensor
    sample_of_row_R: Tensor
    predict_N: Tensor
    targets_N: Tensor
    slot_N: Tensor
    mask_RL: Tensor

    @cached_property
    def groups(self) -> RowGroups:
        """Groups of rows of equal length, (rows, length) each."""
        by_length = groupby(self.blocks, key=lambda block: block.length)
        return tuple((sum(block.rows for block in same), length) for length, same in by_length)

    @cached_property
    def target_mask_RL(self) -> Tensor:
        """Slots of the targets' tokens, without those of the ends that follow them, (R, L)."""
        ends = [(r, row.record.n_targets) for r, row in enumerate(self.rows) if row.record.ends]
        if not ends:
            return self.mask_RL
        rows, slots = on_device(ends, torch.int64, self.mask_RL.device).unbind(1)
        mask_RL = self.mask_RL.clone()
        mask_RL[rows, slots] = False
        return mask_RL

    def by_length(self) -> list[tuple[MicroBatch, slice]]:
        """Return the blocks of each length with the rows' adapters, and where their positions are.

        All else in a part is the whole batch's.
        """
        parts: list[tuple[MicroBatch, slice]] = []
        row = start = 0
        for length, same in groupby(self.blocks, key=lambda block: block.length):
            blocks = tuple(same)
            rows = sum(block.rows for block in blocks)
            part = replace(
                self, blocks=blocks, adapter_of_row_R=self.adapter_of_row_R[row : row + rows]
            )
            parts.append((part, slice(start, start + rows * length)))
            row, start = row + rows, start + rows * length
        return parts

    def lay_out(self, values_N: Tensor) -> Tensor:
        """Return per-token values, (N,), as (R, L), zero (False) where there is no token.

        Gradients are kept. A value whose slot is R L, one past the last, is dropped.
        """
        flat = values_N.new_zeros(self.mask_RL.numel() + 1)
        return flat.index_put((self.slot_N,), values_N)[:-1].view_as(self.mask_RL)


def micro_batches(rows: Sequence[Row]) -> tuple[MicroBatch, ...]:
    """Split rows into micro-batches within the token limit; a longer row gets its own.

    Rows are sorted by length and then by placement; those of one adapter are ordered alike in every
    pack.
    """
    on_cpu = all(row.record.hidden_TD.is_cpu for row in rows)
    most = CPU_MICRO_BATCH_TOKENS if on_cpu else MAX_MICRO_BATCH_TOKENS
    parts: list[list[Row]] = []
    used = 0
    for row in sorted(rows, key=lambda row: (-row.length, row.placed)):
        if parts and used + row.length <= most:
            parts[-1].append(row)
            used += row.length
        else:
            parts.append([row])
            used = row.length
    return tuple(_assemble(part) for part in parts)


def _assemble(rows: Sequence[Row]) -> MicroBatch:
    records = [row.record for row in rows]
    device = records[0].hidden_TD.device
    slots = max(record.n_supervised for record in records)
    predict, slot, targets = [], [], []
    mask_RL = torch.zeros(len(rows), slots, dtype=torch.bool, device=device)
    start = 0
    for r, (row, record) in enumerate(zip(rows, records, strict=True)):
        if row.scored is None:
            at = torch.arange(record.n_supervised, device=device)
        else:
            at = on_device(row.scored, torch.int64, device)
        predict.append(at + (start + record.first))
        slot.append(at + r * slots)
        targets.append(record.targets_L[at])
        mask_RL[r, at] = True
        start += row.length
    return MicroBatch(
        rows=tuple(rows),
        blocks=blocks_of((row.adapter, row.length) for row in rows),
        hidden_TD=torch.cat([record.hidden_TD for record in records]),
        adapter_in_TX=torch.cat([record.adapter_in_TX for record in records]),
        positions_T=torch.cat([torch.arange(row.length, device=device) for row in rows]),
        adapter_of_row_R=on_device([row.adapter for row in rows], torch.int64, device),
        sample_of_row_R=on_device([row.sample for row in rows], torch.int64, device),
        predict_N=torch.cat(predict),
        targets_N=torch.cat(targets),
        slot_N=torch.cat(slot),
        mask_RL=mask_RL,
    )
