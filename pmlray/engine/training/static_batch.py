"""A micro-batch at a fixed place in memory, into which every step's rows are written.

A captured graph is replayed on the same addresses with the same shapes. Rows that are the same in
every step keep their own length; where a step takes some of many records, each of its rows is
padded at its end to the length of the longest record: causal attention never attends to the
padding, and no token is scored there. Shapes: R rows, T positions, L supervised tokens of the
longest place, N scored tokens, W width of all adapted sites' outputs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pmlray.engine.model.batches import MicroBatch, Row, blocks_of
from pmlray.engine.model.device import on_device
from pmlray.engine.scheduling.members import Member
from pmlray.engine.training.step import Dropout


@dataclass(frozen=True)
class Place:
    """Space for one row of an adapter: numbers of positions, supervised and scored tokens."""

    adapter: int
    length: int
    tokens: int
    scored: int


Layout = tuple[Place, ...]


class Fit(NamedTuple):
    """Rows of a step with their places, longest place first.

    `positions`: of all places together. `padding`: positions over the number that the members' rows
    take on average.
    """

    rows: tuple[Row, ...]
    layout: Layout
    positions: int
    padding: float


class Layouts:
    """Places for the rows of a pack's steps."""

    def __init__(self, members: Sequence[Member], batch_size: int) -> None:
        self._longest = {
            i: _longest(i, member) if len(member.shown) > batch_size else None
            for i, member in enumerate(members)
        }
        self._mean = [sum(r.length for r in m.shown) / len(m.shown) for m in members]

    def of(self, rows: Sequence[Row]) -> Fit:
        """Return the layout of a step's rows."""
        pairs = [(row, self._longest[row.adapter] or _own(row)) for row in rows]
        pairs.sort(key=lambda pair: (-pair[1].length, pair[0].placed))
        places = tuple(place for _, place in pairs)
        needed = sum(
            self._mean[p.adapter] if self._longest[p.adapter] else p.length for p in places
        )
        positions = sum(place.length for place in places)
        return Fit(tuple(row for row, _ in pairs), places, positions, positions / needed)


def _own(row: Row) -> Place:
    return Place(row.adapter, row.length, row.record.n_supervised, row.n_scored)


def _longest(adapter: int, member: Member) -> Place:
    tokens = max(row.n_scored for row in member.rows)
    return Place(adapter, max(row.length for row in member.rows), tokens, tokens)


class FixedBatch:
    """Tensors of one layout at fixed addresses.

    `batch`: the micro-batch of the rows loaded last. `keep_TW`: its dropout mask, (T, W); None
    without dropout.
    """

    def __init__(self, layout: Layout, like: Row, dropout: Dropout) -> None:
        self._layout, self._dropout = layout, dropout
        record = like.record
        device = record.hidden_TD.device
        r, positions = len(layout), sum(place.length for place in layout)
        self._tokens = max(place.tokens for place in layout)
        scored = sum(place.scored for place in layout)
        # All indices from the host in one tensor, so that they are copied at once.
        self._index = torch.zeros(r + 2 * scored, dtype=torch.int64, device=device)
        sample_R, predict_N, slot_N = self._index.split([r, scored, scored])
        self._mask = torch.zeros(r, self._tokens, dtype=torch.bool, device=device)
        lengths = [place.length for place in layout]
        self.batch = MicroBatch(
            rows=(),
            blocks=blocks_of((place.adapter, place.length) for place in layout),
            hidden_TD=record.hidden_TD.new_zeros(positions, record.hidden_TD.shape[1]),
            adapter_in_TX=record.adapter_in_TX.new_zeros(positions, record.adapter_in_TX.shape[1]),
            positions_T=torch.cat([torch.arange(length, device=device) for length in lengths]),
            adapter_of_row_R=on_device([p.adapter for p in layout], torch.int64, device),
            sample_of_row_R=sample_R,
            predict_N=predict_N,
            targets_N=record.targets_L.new_zeros(scored),
            slot_N=slot_N,
            mask_RL=self._mask,
        )
        self.keep_TW = None if dropout.is_off else torch.empty(
            positions, dropout.width, device=device
        )  # fmt: skip

    def load(self, rows: tuple[Row, ...]) -> None:
        """Write these rows, in the order of the layout, and draw dropout's next mask."""
        if rows != self.batch.rows:
            self._load(rows)
        if self.keep_TW is not None:
            # Draw in a micro-batch's order, so that each row gets the same mask as without a graph.
            order = sorted(range(len(rows)), key=lambda r: -rows[r].length)
            drawn = self._dropout.of_rows([rows[r] for r in order])
            keep = dict(zip(order, drawn, strict=True))
            self._end_to_end([keep[r] for r in range(len(rows))], self.keep_TW)

    @torch.no_grad()
    def _load(self, rows: tuple[Row, ...]) -> None:
        self.batch = replace(self.batch, rows=rows)
        self._end_to_end([row.record.hidden_TD for row in rows], self.batch.hidden_TD)
        self._end_to_end([row.record.adapter_in_TX for row in rows], self.batch.adapter_in_TX)
        device = self._index.device
        targets = [
            row.record.targets_L if row.scored is None
            else row.record.targets_L[on_device(row.scored, torch.int64, device)]
            for row in rows
        ]  # fmt: skip
        scored = [place.scored for place in self._layout]
        self._end_to_end(targets, self.batch.targets_N, scored)
        start, nowhere = 0, len(rows) * self._tokens
        predict, slot = [], []
        for r, (row, place) in enumerate(zip(rows, self._layout, strict=True)):
            at = np.arange(row.n_scored) if row.scored is None else np.array(row.scored)
            spare = np.zeros(place.scored - len(at), dtype=np.int64)
            predict += [at + (start + row.record.first), spare + start]
            slot += [at + r * self._tokens, spare + nowhere]
            start += place.length
        samples = np.array([row.sample for row in rows])
        self._index.copy_(
            on_device(np.concatenate([samples, *predict, *slot]).tolist(), torch.int64, device)
        )
        ones_N = torch.ones_like(self.batch.slot_N, dtype=torch.bool)
        self._mask.copy_(self.batch.lay_out(ones_N))

    def _end_to_end(
        self, parts: Sequence[Tensor], target: Tensor, sizes: Sequence[int] | None = None
    ) -> None:
        """Write parts to their places, padded with zeros."""
        pieces = []
        for part, size in zip(parts, sizes or [p.length for p in self._layout], strict=True):
            pieces.append(part)
            if spare := size - len(part):
                pieces.append(part.new_zeros(spare, *part.shape[1:]))
        torch.cat(pieces, out=target)
