"""Step schedules of a pack's members: learning rate, decay, end, and shared steps (trunks).

Runs that differ only in their budget are identical until the shorter one's decay. Under a constant
rate the longest run of such a family is the trunk; a shorter one branches off where its own decay
begins, and until then is charged only its part of the trunk's steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmlray.config.recipe import Recipe
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.plateau_stopping import STEPS_BETWEEN_LOOKS, can_stop, largest_change
from pmlray.engine.scheduling.redistribution import MAX_STRETCH
from pmlray.engine.scheduling.token_stopping import TokenStopping
from pmlray.types import MemftRules


class Schedules:
    """Schedule of every member, by its index; `steps` always counts the member's own steps.

    `most_steps`: largest number of steps that each member can take.
    """

    def __init__(self, members: Sequence[Member], recipe: Recipe, watched: TokenStopping) -> None:
        self._members, self._recipe, self._stopping = members, recipe, watched
        self.most_steps = [
            m.train_steps * (MAX_STRETCH if i in watched.redistributed else 1)
            for i, m in enumerate(members)
        ]
        # Steps at the constant rate that a run skipped by an early decay.
        self._spared = [0] * len(members)

    def rate(self, i: int, steps: int) -> float:
        """Return the learning rate of a member's next step."""
        return self._members[i].rate_at(self._recipe, self._progress(i, steps))

    def has_ended(self, i: int, steps: int) -> bool:
        """Return whether a run has had all its steps, or has no token left to train."""
        if self._stopping.done(i):
            return True
        had = self._progress(i, steps) >= self._members[i].train_steps
        return had or steps >= self.most_steps[i]

    def may_saturate(self, i: int, steps: int) -> bool:
        """Return whether a check is due whether a run's loss is low enough to end it."""
        return self._recipe.stop_loss > 0 and self._may_look(i, steps)

    def may_decay(self, i: int, steps: int) -> bool:
        """Return whether a check is due whether a run's loss is flat enough to begin its decay."""
        free = self._may_look(i, steps) and not self._spared[i]
        return free and can_stop(self._recipe, steps, self._members[i].train_steps)

    def decays_now(self, i: int, steps: int, losses: Sequence[float]) -> bool:
        """Return whether a run's loss is flat; if so, begin its decay now and move up its end.

        losses: of the last half of its steps, nats per token.
        """
        decay = self._recipe.decay_start(self._members[i].train_steps)
        flat = largest_change(losses, steps, decay, self.epoch(i)) <= self._recipe.stop_gain
        if flat:
            self._spared[i] = decay - steps
        return flat

    def end(self, i: int) -> int:
        """Return the number of steps after which a member ends, unless it is redistributed."""
        return self._members[i].train_steps - self._spared[i]

    def ahead(self, i: int, steps: int) -> int:
        """Return a member's remaining steps.

        A redistributed member takes more than its nominal steps; its rate so far is extrapolated.
        """
        if (watched := self._stopping.redistributed.get(i)) is None:
            return max(0, self.end(i) - steps)
        left = max(0.0, self._members[i].train_steps - watched.progress)
        stretched = math.ceil(left * max(1.0, steps / max(watched.progress, 1.0)))
        return min(max(0, self.most_steps[i] - steps), stretched)

    def decay_start(self, i: int) -> int:
        """Return the step at which a member's decay begins."""
        return self._recipe.decay_start(self._members[i].train_steps) - self._spared[i]

    def epoch(self, i: int) -> int:
        """Return the steps in which every record of a run is used once."""
        return math.ceil(len(self._members[i].shown) / self._recipe.batch_size)

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState(facts={"spared": self._spared})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        self._spared = list(state.facts["spared"])

    def _progress(self, i: int, steps: int) -> float:
        """Return a run's place on its schedule, in its own nominal steps."""
        if i in self._stopping.redistributed:
            return self._stopping.redistributed[i].progress
        return steps + self._spared[i]

    def _may_look(self, i: int, steps: int) -> bool:
        """Return whether a run may be checked for an early end now."""
        of_law = self._members[i].run.phase == "law"
        return of_law and steps > 0 and steps % STEPS_BETWEEN_LOOKS == 0


@dataclass(frozen=True, slots=True)
class Branch:
    """Start of adapter `follower` as a copy of adapter `trunk` before optimiser step `step`."""

    follower: int
    trunk: int
    step: int


class Trunks:
    """Shared steps of a pack's runs, and the branches still to come."""

    def __init__(self, members: Sequence[Member], recipe: Recipe, rules: MemftRules) -> None:
        families: dict[tuple[object, ...], list[int]] = {}
        for i, member in enumerate(members):
            run = member.run
            # Not shared: MemFT's curriculum depends on the whole budget from the first step on, and
            # in `memft_rd` the tokens that leave the batch depend on the run.
            alone = member.grows(rules) or run.method == "memft_rd"
            if member.shares_trunk(recipe) and not alone:
                size = (run.point.family, run.learning_rate)
                same = (*size, run.method, run.phase, run.sequence_id, run.seed)
                families.setdefault(same, []).append(i)
        self._waiting: dict[int, Branch] = {}
        for family in families.values():
            trunk = max(family, key=lambda i: members[i].train_steps)
            for i in family:
                steps = members[i].train_steps
                # Even without a decay the last step is not shared.
                start = min(recipe.decay_start(steps), steps - 1)
                if i != trunk and start > 0:
                    self._waiting[i] = Branch(i, trunk, start)

    def waits(self, adapter: int) -> bool:
        """Return whether the adapter is still part of its trunk."""
        return adapter in self._waiting

    def branch_step(self, adapter: int) -> int:
        """Return the step before which a waiting adapter leaves its trunk."""
        return self._waiting[adapter].step

    @property
    def waiting(self) -> tuple[int, ...]:
        """Adapters that are still part of their trunk."""
        return tuple(self._waiting)

    def trunk_of(self, adapter: int) -> int:
        """Return the adapter whose steps an adapter shares; itself after it has branched off."""
        return self._waiting[adapter].trunk if self.waits(adapter) else adapter

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState(facts={"waiting": self.waiting})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`; adapters not in it have left their trunk."""
        left = state.facts["waiting"]
        self._waiting = {i: branch for i, branch in self._waiting.items() if i in left}

    def release(self, adapter: int) -> Branch:
        """Branch a waiting adapter off early; return its branch."""
        return self._waiting.pop(adapter)

    def payers(self, adapter: int) -> tuple[int, ...]:
        """Return the members charged for an adapter's step: itself and those still part of it."""
        return (adapter, *(b.follower for b in self._waiting.values() if b.trunk == adapter))

    def leave(self, steps: Mapping[int, int], ended: Sequence[int] = ()) -> list[Branch]:
        """Remove and return branches that leave before the next step, or whose trunk has ended.

        steps: number of steps of each training adapter. ended: adapters that end now.
        """
        leaving = [
            b
            for b in self._waiting.values()
            if b.step <= steps.get(b.trunk, -1) or b.trunk in ended
        ]
        for branch in leaving:
            del self._waiting[branch.follower]
        return leaving
