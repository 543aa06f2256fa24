"""End of a run under the threshold rule, once nothing is left to train.

Once every token of a run is above the threshold none carries weight, so that no later step would
change the adapter: the run may end there, for the same result at less cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmlray.engine.model.batches import Row
from pmlray.engine.scheduling.members import Member

# What steps have found is read where the device is waited for, so only so often.
STEPS_BETWEEN_CHECKS = 16


class ThresholdStopping:
    """Looks at all of a run's records once its steps have found no token below the threshold, each
    record in its own last step; `done` when the look finds none either."""

    def __init__(self, member: Member, batch_size: int, threshold: float) -> None:
        self.rows, self._threshold = member.rows, threshold
        self._steps_of_epoch = math.ceil(len(member.rows) / batch_size)
        self._idle = False
        self.done = False

    def is_due(self, steps: int) -> bool:
        """Return whether it is time to read what the steps have found."""
        every = max(STEPS_BETWEEN_CHECKS, self._steps_of_epoch)
        return steps > 0 and steps % every == 0

    def checked(self, in_batch: Mapping[int, Sequence[float]]) -> None:
        """Take in what steps have found.

        in_batch: the losses of every supervised token, by sample, nats, as their last step found
        them (inf before the first).
        """
        self._idle = not self._any_below(in_batch[row.sample] for row in self.rows)

    def to_look_at(self, steps: int) -> tuple[Row, ...]:
        """The records to score after so many steps."""
        return self.rows if self._idle else ()

    def looked(self, steps: int, nll: Mapping[int, Sequence[float]]) -> None:
        """Take in what a look has found: the losses of the records in `to_look_at`, nats."""
        self.done = not self._any_below(nll.values())

    def facts(self) -> dict[str, Any]:
        """The state that `set_state` continues from, as JSON types."""
        return {"idle": self._idle, "done": self.done}

    def set_state(self, facts: Mapping[str, Any]) -> None:
        """Go on from what `facts` gave."""
        self._idle, self.done = facts["idle"], facts["done"]

    def _any_below(self, losses: Iterable[Sequence[float]]) -> bool:
        return any(above(loss, self._threshold) for own in losses for loss in own)


def above(loss: float, p: float) -> bool:
    """Return whether a token's loss, nats, is above that of probability p."""
    # Not `loss > -log p`: a NaN loss must stay and show.
    return not loss <= -math.log(p)
