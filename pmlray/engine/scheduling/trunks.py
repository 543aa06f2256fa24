"""Runs that differ in their budget alone are one run up to the shorter one's decay.

Under a constant rate the longest run of such a family is the trunk; a shorter one branches off
where its own decay begins, and until then costs only its part of the trunk's steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmlray.config.recipe import Recipe
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.types import MemftRules


@dataclass(frozen=True, slots=True)
class Branch:
    """Adapter `follower` begins as a copy of adapter `trunk` before optimiser step `step`."""

    follower: int
    trunk: int
    step: int


class Trunks:
    """The branches of a pack that are still to come."""

    def __init__(self, members: Sequence[Member], recipe: Recipe, rules: MemftRules) -> None:
        families: dict[tuple[object, ...], list[int]] = {}
        for i, member in enumerate(members):
            run = member.run
            # MemFT's curriculum is laid out over the whole budget: its first steps differ too; what
            # leaves a batch, and when, is each run's own.
            alone = member.grows(rules) or run.method == "memft_rd"
            if recipe.shares_trunks and not alone:
                size = (run.point.lora_rank, run.point.seq_len, run.learning_rate)
                same = (*size, run.method, run.phase, run.sequence_id, run.seed)
                families.setdefault(same, []).append(i)
        self._waiting: dict[int, Branch] = {}
        for family in families.values():
            trunk = max(family, key=lambda i: members[i].train_steps)
            for i in family:
                steps = members[i].train_steps
                # Its last step is its own even without a decay.
                start = min(recipe.decay_start(steps), steps - 1)
                if i != trunk and start > 0:
                    self._waiting[i] = Branch(i, trunk, start)

    def waits(self, adapter: int) -> bool:
        """Whether the adapter is still part of its trunk."""
        return adapter in self._waiting

    def branch_step(self, adapter: int) -> int:
        """The step before which an adapter that waits leaves its trunk."""
        return self._waiting[adapter].step

    @property
    def waiting(self) -> tuple[int, ...]:
        """The adapters that are still part of their trunk."""
        return tuple(self._waiting)

    def trunk_of(self, adapter: int) -> int:
        """The adapter whose steps an adapter shares; itself once it goes on alone."""
        return self._waiting[adapter].trunk if self.waits(adapter) else adapter

    def get_state(self) -> PackState:
        """The state that `set_state` continues from."""
        return PackState(facts={"waiting": self.waiting})

    def set_state(self, state: PackState) -> None:
        """Continue from a state that `get_state` gave: who is not waiting has left its trunk."""
        left = state.facts["waiting"]
        self._waiting = {i: branch for i, branch in self._waiting.items() if i in left}

    def release(self, adapter: int) -> Branch:
        """Let an adapter that waits go before its time."""
        return self._waiting.pop(adapter)

    def payers(self, adapter: int) -> tuple[int, ...]:
        """Whom a step of the adapter serves: itself and those that are still part of it."""
        return (adapter, *(b.follower for b in self._waiting.values() if b.trunk == adapter))

    def leave(self, steps: Mapping[int, int], ended: Sequence[int] = ()) -> list[Branch]:
        """Those that branch off before the next step, or whose trunk has ended; they wait no more.

        steps: how many steps the adapters that train have had.
        """
        leaving = [
            b
            for b in self._waiting.values()
            if b.step <= steps.get(b.trunk, -1) or b.trunk in ended
        ]
        for branch in leaving:
            del self._waiting[branch.follower]
        return leaving
