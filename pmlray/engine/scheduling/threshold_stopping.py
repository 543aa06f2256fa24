"""Early end of a run under the threshold rule, once no token is left to train.

Once every token of a run is above the threshold, none carries weight and no later step would change
the adapter: ending the run gives the same result at less cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmlray.engine.model.batches import Row
from pmlray.engine.scheduling.members import Member

# Reading the losses of steps waits for the device, so it is not done at every step.
STEPS_BETWEEN_CHECKS = 16


class ThresholdStopping:
    """Check of one run's tokens against the threshold.

    Once no token was below the threshold in its record's last step, all records are evaluated;
    `done`: True if none is below it there either.
    """

    def __init__(self, member: Member, batch_size: int, threshold: float) -> None:
        self.rows, self._threshold = member.rows, threshold
        self._steps_of_epoch = math.ceil(len(member.shown) / batch_size)
        self._idle = False
        self.done = False

    def is_due(self, steps: int) -> bool:
        """Return whether the losses of the steps are to be checked now."""
        every = max(STEPS_BETWEEN_CHECKS, self._steps_of_epoch)
        return steps > 0 and steps % every == 0

    def checked(self, in_batch: Mapping[int, Sequence[float]]) -> None:
        """Check the token losses of the latest steps.

        in_batch: losses of every supervised token in its last step, nats, by sample (inf before the
        first step).
        """
        self._idle = not self._any_below(in_batch[row.sample] for row in self.rows)

    def to_look_at(self, steps: int) -> tuple[Row, ...]:
        """Return the records to evaluate after so many steps."""
        return self.rows if self._idle else ()

    def looked(self, steps: int, nll: Mapping[int, Sequence[float]]) -> None:
        """Check an evaluation: nll, the losses of the records in `to_look_at`, by sample, nats."""
        self.done = not self._any_below(nll.values())

    def facts(self) -> dict[str, Any]:
        """Return the state that `set_state` restores, as JSON types."""
        return {"idle": self._idle, "done": self.done}

    def set_state(self, facts: Mapping[str, Any]) -> None:
        """Restore the state returned by `facts`."""
        self._idle, self.done = facts["idle"], facts["done"]

    def _any_below(self, losses: Iterable[Sequence[float]]) -> bool:
        return any(above(loss, self._threshold) for own in losses for loss in own)


def above(loss: float, p: float) -> bool:
    """Return whether a token's loss, nats, is above that of probability p; True for NaN."""
    # Not `loss > -log p`: a token with a NaN loss must stay in training, so that it shows.
    return not loss <= -math.log(p)
