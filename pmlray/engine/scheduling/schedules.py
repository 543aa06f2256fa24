"""How far each member of a pack is on its schedule, and when it has had its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pmlray.config.recipe import Recipe
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.plateau_stopping import STEPS_BETWEEN_LOOKS, can_stop, largest_change
from pmlray.engine.scheduling.redistribution import MAX_STRETCH
from pmlray.engine.scheduling.token_stopping import TokenStopping


class Schedules:
    """Steps of every member, by its index; `steps` are always its own."""

    def __init__(self, members: Sequence[Member], recipe: Recipe, watched: TokenStopping) -> None:
        self._members, self._recipe, self._watched = members, recipe, watched
        self.most_steps = [
            m.train_steps * (MAX_STRETCH if i in watched.redistributed else 1)
            for i, m in enumerate(members)
        ]
        # Steps at the constant rate that a run was spared.
        self._spared = [0] * len(members)

    def rate(self, i: int, steps: int) -> float:
        """The learning rate of a member's next step."""
        return self._members[i].rate_at(self._recipe, self._progress(i, steps))

    def has_ended(self, i: int, steps: int) -> bool:
        """Whether a run has had its steps, or has nothing left that it would train."""
        if self._watched.done(i):
            return True
        had = self._progress(i, steps) >= self._members[i].train_steps
        return had or steps >= self.most_steps[i]

    def may_saturate(self, i: int, steps: int) -> bool:
        """Whether it is time to see if a run's loss is so low that it ends."""
        return self._recipe.stop_loss > 0 and self._may_look(i, steps)

    def may_decay(self, i: int, steps: int) -> bool:
        """Whether it is time to see if a run's loss is so flat that its decay begins."""
        free = self._may_look(i, steps) and not self._spared[i]
        return free and can_stop(self._recipe, steps, self._members[i].train_steps)

    def decays_now(self, i: int, steps: int, losses: Sequence[float]) -> bool:
        """Whether a run's decay begins now, by the losses of its last half of steps; its end moves
        with it."""
        decay = self._recipe.decay_start(self._members[i].train_steps)
        flat = largest_change(losses, steps, decay, self.epoch(i)) <= self._recipe.stop_gain
        if flat:
            self._spared[i] = decay - steps
        return flat

    def end(self, i: int) -> int:
        """After how many steps a member that is not watched has had them all."""
        return self._members[i].train_steps - self._spared[i]

    def ahead(self, i: int, steps: int) -> int:
        """How many steps a member has before it, of which one that is watched takes more than it
        is given, at the pace of those so far."""
        if (watched := self._watched.redistributed.get(i)) is None:
            return max(0, self.end(i) - steps)
        left = max(0.0, self._members[i].train_steps - watched.progress)
        stretched = math.ceil(left * max(1.0, steps / max(watched.progress, 1.0)))
        return min(max(0, self.most_steps[i] - steps), stretched)

    def decay_start(self, i: int) -> int:
        """The step at which a member's decay begins."""
        return self._recipe.decay_start(self._members[i].train_steps) - self._spared[i]

    def epoch(self, i: int) -> int:
        """Steps in which all of a run's records have had their part."""
        return math.ceil(len(self._members[i].rows) / self._recipe.batch_size)

    def get_state(self) -> PackState:
        """The state that `set_state` continues from."""
        return PackState(facts={"spared": self._spared})

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave."""
        self._spared = list(state.facts["spared"])

    def _progress(self, i: int, steps: int) -> float:
        """How far a run is on its schedule, in its own nominal steps."""
        if i in self._watched.redistributed:
            return self._watched.redistributed[i].progress
        return steps + self._spared[i]

    def _may_look(self, i: int, steps: int) -> bool:
        """Whether a run may end early now."""
        of_law = self._members[i].run.phase == "law"
        return of_law and steps > 0 and steps % STEPS_BETWEEN_LOOKS == 0
