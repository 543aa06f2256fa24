"""`memft_rd`: what is recalled leaves the batch, and its steps go to what is not.

Work is counted in positions through the frozen suffix; `head_work` is what scoring one token costs
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.batches import MicroBatch, Row
from pmlray.engine.evaluate import score_tokens
from pmlray.engine.members import Member
from pmlray.types import MemftRules

# A forward pass over a step that also goes backward, neither with a weight gradient.
FORWARD_SHARE = 0.5
# A run whose steps cost next to nothing ends after so many times its nominal steps.
MAX_STRETCH = 8


class Redistribution:
    """The rows of one run that still hold something to learn, and what its steps have cost.

    `progress` counts nominal steps, each worth one step of the run with nothing left out; the
    learning rate and the end of the run go by it.
    """

    def __init__(
        self, member: Member, batch_size: int, rules: MemftRules, head_work: float
    ) -> None:
        self.rows, self._rules = member.rows, rules
        self._batch_size, self._seed = batch_size, member.run.seed
        # In equal tokens only what goes through the layers counts.
        self._head_work = head_work if rules.equal == "gpu_seconds" else 0.0
        share = min(1.0, batch_size / len(member.rows))
        self._step_work = share * sum(map(self._work, member.rows))
        self._queue: list[Row] = []
        self._epoch = 0
        self.open: tuple[Row, ...] = member.rows
        self.progress = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing was left to learn at the last look."""
        return not self.open

    def is_due(self, steps: int) -> bool:
        """Whether those that left are looked at after so many steps."""
        return steps > 0 and steps % self._rules.recheck_steps == 0

    def next_rows(self) -> tuple[Row, ...]:
        """The rows of the next step: all that are open, or as many as a batch takes in turn."""
        if len(self.open) <= self._batch_size:
            return self.open
        while len(self._queue) < self._batch_size:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self.open))
            self._queue += [self.open[i] for i in order]
            self._epoch += 1
        chosen, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return tuple(chosen)

    def stepped(self, rows: Sequence[Row]) -> None:
        """Count a step over these rows."""
        if self._rules.equal == "steps":
            self.progress += 1.0
        else:
            self.progress += sum(map(self._work, rows)) / self._step_work

    @property
    def left_out(self) -> tuple[Row, ...]:
        """The records of which something is left out: their losses are known by a look alone."""
        whole = {row.sample for row in self.open if row.scored is None}
        return tuple(row for row in self.rows if row.sample not in whole)

    def looked(self, nll: Mapping[int, Sequence[float]]) -> None:
        """Count a look at what was left out, and leave out what is recalled now.

        nll: of every supervised token of every record, by sample, nats; of a record that is wholly
        in the batch, as its last step found it (inf before its first). A record of which nothing is
        left to learn leaves as a whole; of the others only the tokens below the margin are scored,
        and nothing after the last of them is computed.
        """
        if self._rules.equal != "steps":
            self.progress += FORWARD_SHARE * sum(map(self._work, self.left_out)) / self._step_work
        safe = -math.log(self._rules.margin)
        left = []
        for row in self.rows:
            losses = nll[row.sample]
            scored = tuple(i for i, loss in enumerate(losses) if not loss <= safe)
            if len(scored) == len(losses):
                left.append(row)
            elif scored:
                record = row.record.shortened(scored[-1] + 1)
                left.append(replace(row, record=record, scored=scored))
        self.open = tuple(left)
        self._queue = []

    def _work(self, row: Row) -> float:
        return row.length + self._head_work * row.n_scored


class RedistributedRuns:
    """The `memft_rd` runs of a pack, by the index of their member."""

    def __init__(
        self, members: Sequence[Member], batch_size: int, rules: MemftRules, head_work: float
    ) -> None:
        self.runs = {
            i: Redistribution(member, batch_size, rules, head_work)
            for i, member in enumerate(members)
            if member.run.method == "memft_rd"
        }
        rows = [row for member in members for row in member.rows]
        # Of every sample and token, as its last step found it.
        self._last_nll = torch.full(
            (len(rows), max(row.n_scored for row in rows)),
            math.inf,
            device=rows[0].record.hidden_TD.device,
        )

    def keep_losses(self, batch: MicroBatch, nll_RL: Tensor) -> None:
        """Note what a step finds, (R, L) nats; nothing waits for the device."""
        if self.runs:
            width = nll_RL.shape[1]
            kept_RL = self._last_nll[batch.sample_of_row_R, :width]
            seen_RL = torch.where(batch.mask_RL, nll_RL, kept_RL)
            self._last_nll[batch.sample_of_row_R, :width] = seen_RL

    def stepped(self, rows_of: Mapping[int, Sequence[Row]]) -> None:
        """Count a step of the members in `rows_of`."""
        for i, run in self.runs.items():
            if i in rows_of:
                run.stepped(rows_of[i])

    def due(self, steps: int, active: Sequence[int]) -> list[int]:
        """Those of the active members that look at what they left out after so many steps."""
        return [i for i in active if i in self.runs and self.runs[i].is_due(steps)]

    def look(self, due: Sequence[int], model: AdaptedModel) -> list[Row]:
        """Leave out what is recalled now, take back what no longer is; the rows that were scored
        for it."""
        scored: list[Row] = []
        for i in due:
            run = self.runs[i]
            nll: dict[int, Sequence[float]] = {
                row.sample: self._last_nll[row.sample, : row.n_scored].tolist() for row in run.rows
            }
            if left_out := run.left_out:
                found = score_tokens(model, left_out).nll
                nll |= {row.sample: own for row, own in zip(left_out, found, strict=True)}
            run.looked(nll)
            scored += left_out
        return scored
