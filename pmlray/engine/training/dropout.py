"""Dropout of the adapters' output, drawn from each adapter's own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pmlray.engine.model.batches import MicroBatch, Row
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member


class Dropout:
    """Masks that depend on an adapter's seed and own steps alone, whatever else is in the pack."""

    def __init__(self, members: Sequence[Member], share: float, device: torch.device) -> None:
        self._share = share
        self._generators = [torch.Generator(device).manual_seed(m.run.seed) for m in members]

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever dropped."""
        return not self._share

    def mask(self, batch: MicroBatch) -> Tensor | None:
        """What the adapter output of a step is multiplied with, (T, D); None without dropout."""
        return None if self.is_off else torch.cat(self.of_rows(batch.rows))

    def of_rows(self, rows: Sequence[Row]) -> list[Tensor]:
        """The next mask of each row, (T of the row, D)."""
        return [
            torch.empty(row.record.hidden_TD.shape, device=row.record.hidden_TD.device)
            .bernoulli_(1 - self._share, generator=self._generators[row.adapter])
            .div_(1 - self._share)
            for row in rows
        ]

    def copy(self, source: int, target: int) -> None:
        """Let an adapter go on drawing as another would."""
        self._generators[target].set_state(self._generators[source].get_state())

    def get_state(self) -> PackState:
        """The state that `set_state` continues from; a generator's state is on the host."""
        return PackState({f"{i}": g.get_state() for i, g in enumerate(self._generators)})

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        for i, generator in enumerate(self._generators):
            generator.set_state(state.tensors[f"{i}"].cpu())
