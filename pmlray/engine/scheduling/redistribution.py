"""`memft_rd`: recalled tokens leave the batch, and the work saved goes to the others.

Work is counted in positions through the frozen suffix; `head_work` is the cost of scoring one token
in the same unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pmlray.engine.model.batches import Row
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.threshold_stopping import ThresholdStopping, above
from pmlray.types import MemftRules

# Cost of a forward pass over that of forward and backward, without weight gradients.
FORWARD_SHARE = 0.5
# Limit on steps over nominal steps, for a run whose steps cost next to nothing.
MAX_STRETCH = 8


class Redistribution(ThresholdStopping):
    """Rows of one run that still have tokens to learn, and the work of its steps.

    With several records each leaves as a whole, once all of its tokens are above the margin; with a
    single record its tokens leave, and nothing after the last one left is computed. `progress`:
    work so far in nominal steps, those of the run with nothing left out; it sets the learning rate
    and the end of the run. `done`: True once an evaluation of all records finds no token below the
    threshold.
    """

    def __init__(
        self, member: Member, batch_size: int, rules: MemftRules, head_work: float
    ) -> None:
        super().__init__(member, batch_size, rules.threshold)
        self._rules = rules
        self._batch_size, self._seed = batch_size, member.run.seed
        # With `equal` other than gpu_seconds only positions through the layers count.
        self._head_work = head_work if rules.equal == "gpu_seconds" else 0.0
        share = min(1.0, batch_size / len(member.shown))
        self._step_work = share * sum(map(self._work, member.shown))
        self._repeated = member.repeated
        self._last_look = 0
        self._queue: list[Row] = []
        self._epoch = 0
        self.open: tuple[Row, ...] = member.rows
        self.progress = 0.0

    def to_look_at(self, steps: int) -> tuple[Row, ...]:
        """Return the records to evaluate after so many steps.

        All records where no token in the batch was below the threshold, else those that have left
        the batch, every `recheck_epochs`.
        """
        if self._idle:
            return self.rows
        since = steps - self._last_look
        return self.left_out if since >= self._rules.recheck_epochs * self._steps_of_epoch else ()

    def next_rows(self) -> tuple[Row, ...]:
        """Return the rows of the next step: all open rows, or a batch of them in shuffled order."""
        shown = self._repeated(self.open)
        if len(shown) <= self._batch_size:
            return shown
        while len(self._queue) < self._batch_size:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(len(shown))
            self._queue += [shown[i] for i in order]
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
        """Records that are left out, in whole or in part."""
        whole = {row.sample for row in self.open if row.scored is None}
        return tuple(row for row in self.rows if row.sample not in whole)

    def checked(self, in_batch: Mapping[int, Sequence[float]]) -> None:
        """Leave out the tokens whose probability was above the margin in their last step.

        in_batch: losses of every supervised token in its last step, nats, by the sample of the open
        rows (inf before the first step); those of tokens not scored are ignored.
        """
        unsafe, below = {}, False
        for row in self.open:
            losses = in_batch[row.sample]
            scored = row.scored or range(row.n_scored)
            unsafe[row.sample] = [i for i in scored if above(losses[i], self._rules.margin)]
            below |= any(above(losses[i], self._rules.threshold) for i in scored)
        self._idle = not below
        self._keep(unsafe)

    def looked(self, steps: int, nll: Mapping[int, Sequence[float]]) -> None:
        """Take back evaluated tokens below the margin, leave out the others, and count the work.

        nll: losses of every supervised token of the records in `to_look_at`, by sample, nats.
        """
        rows = [row for row in self.rows if row.sample in nll]
        if self._rules.equal != "steps":
            self.progress += FORWARD_SHARE * sum(map(self._work, rows)) / self._step_work
        self._last_look = steps
        if self._idle:
            super().looked(steps, nll)
        found = {
            sample: [i for i, loss in enumerate(losses) if above(loss, self._rules.margin)]
            for sample, losses in nll.items()
        }
        whole = {row.sample: list(range(row.n_scored)) for row in self.open if row.scored is None}
        self._keep(whole | found)

    def facts(self) -> dict[str, Any]:
        """Return the state that `set_state` restores, as JSON types."""
        return super().facts() | {
            "last_look": self._last_look,
            "epoch": self._epoch,
            "progress": self.progress,
            "open": [(row.sample, row.scored) for row in self.open],
            "queue": [row.sample for row in self._queue],
        }

    def set_state(self, facts: Mapping[str, Any]) -> None:
        """Restore the state returned by `facts`."""
        super().set_state(facts)
        self._last_look, self._epoch = facts["last_look"], facts["epoch"]
        self.progress = facts["progress"]
        whole = {row.sample: row for row in self.rows}
        kept = {
            sample: whole[sample] if scored is None else _part(whole[sample], tuple(scored))
            for sample, scored in facts["open"]
        }
        self.open = tuple(kept.values())
        self._queue = [kept[sample] for sample in facts["queue"]]

    def _keep(self, unsafe: Mapping[int, Sequence[int]]) -> None:
        """Keep only rows with unsafe tokens, and of a single record only those tokens."""
        kept = {}
        for row in self.rows:
            scored = tuple(unsafe.get(row.sample, ()))
            if not scored:
                continue
            if len(self.rows) > 1 or len(scored) == row.n_scored:
                kept[row.sample] = row
            else:
                kept[row.sample] = _part(row, scored)
        self.open = tuple(kept.values())
        self._queue = [kept[row.sample] for row in self._queue if row.sample in kept]

    def _work(self, row: Row) -> float:
        return row.length + self._head_work * row.n_scored


def _part(row: Row, scored: tuple[int, ...]) -> Row:
    """Return a row that scores only these tokens and computes nothing after the last of them."""
    return replace(row, record=row.record.truncated(scored[-1] + 1), scored=scored)
