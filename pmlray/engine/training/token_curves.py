"""Probability of each token while an adapter trains, kept from passes that are made anyway.

Shapes: R rows, L supervised tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member

# A table of more tokens would make up nearly all of its observation's file.
MOST_TOKENS = 2048


class TokenCurves:
    """Losses of every supervised token at some steps, by the index of a member.

    Tensors are kept as they come, so that no step waits for the device. Members of more than
    MOST_TOKENS supervised tokens are left out.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._first = [member.rows[0].sample for member in members]
        self._fits = [sum(r.n_scored for r in m.rows) <= MOST_TOKENS for m in members]
        self._nll: list[dict[int, dict[int, Tensor]]] = [{} for _ in members]

    def keep(
        self, steps: int, batch: MicroBatch, nll_RL: Tensor, of: Collection[int] | None = None
    ) -> None:
        """Note what a pass over whole records finds after so many steps, nats; `of` these members
        alone."""
        for row, nll_L in zip(batch.rows, nll_RL.detach(), strict=True):
            i = row.adapter
            if self._fits[i] and (of is None or i in of):
                records = self._nll[i].setdefault(steps, {})
                records[row.sample - self._first[i]] = nll_L[: row.n_scored]

    def copy(self, source: int, target: int) -> None:
        """Give a member of the same records what another has."""
        self._nll[target] = dict(self._nll[source])

    def get_state(self) -> PackState:
        """All losses end to end, and (member, steps, record, tokens) of each stretch of them."""
        parts, index = [], []
        for i, of_member in enumerate(self._nll):
            for steps, records in of_member.items():
                for record, nll_L in records.items():
                    parts.append(nll_L)
                    index.append((i, steps, record, len(nll_L)))
        nll = torch.cat(parts) if parts else torch.zeros(0)
        return PackState({"nll": nll}, {"stretches": index})

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        self._nll = [{} for _ in self._nll]
        index = state.facts["stretches"]
        parts = state.tensors["nll"].split([tokens for *_, tokens in index]) if index else ()
        for (i, steps, record, _), nll_L in zip(index, parts, strict=True):
            self._nll[i].setdefault(steps, {})[record] = nll_L

    def of(self, i: int, before: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """(step, p of every token) at the steps noted before a step, in the order of the records.

        p is rounded to three significant digits: what float16 would hold, and short to write.
        """
        table = []
        for step in sorted(s for s in self._nll[i] if s < before):
            records = self._nll[i][step]
            nll = torch.cat([records[r] for r in sorted(records)])
            p = torch.exp(-nll.double()).tolist()
            table.append((step, tuple(float(f"{x:.3g}") for x in p)))
        return tuple(table)
