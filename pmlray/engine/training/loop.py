"""The training loop of a pack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.runtime.checkpoints import Checkpoints
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.pack_watch import PackWatch
from pmlray.engine.training.metrics import TrainedMember
from pmlray.engine.training.pack_loop import PackLoop
from pmlray.engine.training.step import Stepper
from pmlray.types import MemftRules, Room


def train_pack(
    model: AdaptedModel,
    stepper: Stepper,
    optimizer: PackedAdamW,
    members: Sequence[Member],
    recipe: Recipe,
    *,
    rules: MemftRules,
    on_finished: Callable[[Sequence[TrainedMember]], None],
    on_left_out: Callable[[Mapping[int, float]], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
    room: Room | None = None,
    watch: PackWatch | None = None,
) -> float:
    """Train every member to its own end; returns wall seconds inside optimiser steps.

    `on_finished` is called with the members that are done as soon as they are, while the others go
    on; its time counts for nobody. With `checkpoints` a pack goes on from where the last was taken.
    Members that find no `room` begin once others have ended; each counts its own steps. What
    `watch` finds too much is left undone: `on_left_out` is told the gpu_seconds of each such
    member, by its index.
    """
    pack = PackLoop(model, stepper, optimizer, members, recipe, rules, room)
    step = 0 if checkpoints is None else checkpoints.resume(pack)
    if not step:
        pack.admit(0)
    while pack.active:
        pack.train_step(step)
        step += 1
        if finished := pack.look(step):
            on_finished(finished)
            pack.clock.restart()
            pack.admit(step)
        if gone := () if watch is None else watch.after(pack, step):
            on_left_out(pack.leave_out(gone, step))
            pack.admit(step)
        if checkpoints is not None:
            checkpoints.after(pack, step, bool(finished or gone))
    return pack.clock.training_seconds
