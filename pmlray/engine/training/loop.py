"""Training loop of a pack: many adapters on one frozen base, independent of a framework.

Shapes: N adapters in S slots, R rows, L supervised tokens of the longest row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch

from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.optimizer import PackedAdamW
from pmlray.engine.evaluation.scores import TokenScores, mean_losses, score_tokens
from pmlray.engine.model.batches import Row
from pmlray.engine.model.device import on_device
from pmlray.engine.runtime.checkpoints import Checkpoints
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.pack_state import PackState, Stateful
from pmlray.engine.scheduling.members import Admission, Member
from pmlray.engine.scheduling.outlook import Outlook, outlook
from pmlray.engine.scheduling.pack_watch import PackWatch
from pmlray.engine.scheduling.plateau_stopping import broken_runs
from pmlray.engine.scheduling.schedules import Branch, Schedules, Trunks
from pmlray.engine.scheduling.token_stopping import TokenStopping
from pmlray.engine.training.cuda_graph_step import step_taker
from pmlray.engine.training.metrics import PackMetrics, TrainedMember, is_curve_step
from pmlray.engine.training.step import Dropout, PackStep, Stepper
from pmlray.engine.training.token_weights import TokenWeights
from pmlray.types import MemftRules, Room


class PackLoop:
    """State of a pack in training; `active`: indices of the adapters that take steps."""

    def __init__(
        self,
        model: AdaptedModel,
        stepper: Stepper,
        optimizer: PackedAdamW,
        members: Sequence[Member],
        recipe: Recipe,
        rules: MemftRules,
        room: Room | None,
    ) -> None:
        self._model, self._stepper, self._optimizer = model, stepper, optimizer
        self._members, self._recipe, self._rules = members, recipe, rules
        n, device = len(members), model.lora.device
        self._weights = TokenWeights(members, rules)
        self._dropout = Dropout(members, recipe.dropout, model.lora)
        self._trunks = Trunks(members, recipe, rules)
        self._admission = Admission(members, recipe, room)
        self.active: list[int] = []
        self._began: dict[int, int] = {}  # Steps of the pack before each member entered.
        self.clock = DeviceClock(n, device, self._trunks.payers, model.head_work)
        self._stopping = TokenStopping(members, recipe, rules, model.head_work)
        self._schedules = Schedules(members, recipe, self._stopping)
        self._metrics = PackMetrics(members, self._schedules.most_steps, device)
        self._read_off = {  # Their next step computes the same loss as an evaluation.
            i
            for i, m in enumerate(members)
            if recipe.dropout == 0 and m.sees_everything(recipe.batch_size, rules)
        }
        self._parts: Mapping[str, Stateful] = {
            "adapters": model.lora,
            "optimizer": optimizer,
            "weights": self._weights,
            "dropout": self._dropout,
            "trunks": self._trunks,
            "clock": self.clock,
            "watched": self._stopping,
            "budgets": self._schedules,
            "tracks": self._metrics,
        }
        step = PackStep(model, stepper, optimizer, self._weights, self._stopping)
        self._take_step = step_taker(step, self._dropout, members, recipe.batch_size)

    def admit(self, step: int) -> None:
        """Start the members that fit the room after `step` steps of the pack."""
        inside = [*self.active, *(i for i in self._trunks.waiting if i in self._began)]
        entrants = self._admission.enter(inside, self._began)
        for i in entrants:
            self._optimizer.forget(self._model.lora.begin(i, inside))
            self._began[i] = step
            inside.append(i)
        self.active = sorted([*self.active, *(i for i in entrants if not self._trunks.waits(i))])
        if entrants:
            self._look_at(step, 0)

    def outlook(self, step: int) -> Outlook:
        """See Watched."""
        self.clock.lap(training=True)
        entered = self._began.keys() - {*self.active, *self._trunks.waiting}
        outside = [i for i in range(len(self._members)) if i not in entered]
        return outlook(
            *(self._members, self._admission.groups, self._recipe.batch_size),
            *(self._own_steps(step), outside, self._schedules, self._trunks),
            *(self.clock, self._metrics.charged_steps),
        )

    def running(self, step: int) -> dict[int, tuple[int, float]]:
        """See Watched."""
        own = self._own_steps(step)
        losses = self._metrics.last_losses(own)
        return {i: (steps, losses[i]) for i, steps in own.items()}

    def leave_out(self, members: Sequence[int], step: int) -> dict[int, float]:
        """Drop members, in whole groups; return the gpu_seconds each has cost, by index."""
        for i in members:
            if self._trunks.waits(i):
                self._trunks.release(i)
            self._began.setdefault(i, step)  # So that it is never admitted again.
        self.active = [i for i in self.active if i not in members]
        return {i: self.clock.gpu_seconds[i] for i in members}

    def _own_steps(self, step: int) -> dict[int, int]:
        """Return the steps of each active member after `step` steps of the pack."""
        return {i: step - self._began[i] for i in self.active}

    def train_step(self, step: int) -> None:
        """Take one optimiser step of all active adapters, after `step` steps of the pack."""
        for branch in self._trunks.leave(self._own_steps(step)):
            self._join(branch, step - self._began[branch.trunk])
        lora, own = self._model.lora, self._own_steps(step)
        rows_of = {i: self._rows_of(i, steps) for i, steps in own.items()}
        rows = tuple(row for chosen in rows_of.values() for row in chosen)
        rates = [0.0] * lora.n_slots
        slots = [lora.slot_of(i) for i in own]
        for slot, (i, steps) in zip(slots, own.items(), strict=True):
            rates[slot] = self._schedules.rate(i, steps)
        device = lora.device
        taken = self._take_step(rows, on_device(rates, torch.float32, device))
        for steps in {steps for steps in own.values() if is_curve_step(steps)}:
            who = {i for i in self._read_off if own.get(i) == steps}
            if who:
                self._metrics.keep_read_off(steps, who, taken.batches, taken.found.nll_RL)
        at = on_device(slots, torch.int64, device)
        self._metrics.keep_step(own, taken.found.loss_S[at], taken.found.norm_S[at])
        self._stepper.stepped(taken.replayed)
        self._stopping.stepped(rows_of)
        self.clock.add(rows)
        for i in self.active:
            self._metrics.charge(i, self._trunks.payers(i))

    def _rows_of(self, i: int, step: int) -> tuple[Row, ...]:
        if i in self._stopping.redistributed:
            return self._stopping.redistributed[i].next_rows()
        return self._members[i].rows_at(step, self._recipe.batch_size, self._rules)

    def look(self, step: int) -> list[TrainedMember]:
        """Evaluate the curves that are due after `step` steps; return the members that ended."""
        began = sorted({self._began[i] for i in self.active})
        return [member for at in began for member in self._look_at(at, step - at)]

    def _entered(self, began: int, members: Iterable[int]) -> list[int]:
        return [i for i in members if self._began.get(i) == began]

    def _look_at(self, began: int, steps: int) -> list[TrainedMember]:
        """Evaluate and end, as `look` does, members that entered together."""
        self._end_plateaus(began, steps)
        active = self._entered(began, self.active)
        if due := self._stopping.due(steps, active):
            self.clock.lap(training=True)
            self.clock.add(self._stopping.check(steps, due, self._model))
        at_curve = [i for i in active if self._metrics.is_curve_step(i, steps)]
        checked = [
            i
            for i in active
            if self._schedules.may_saturate(i, steps) or self._schedules.has_ended(i, steps)
        ] + broken_runs(self._metrics.step_losses, steps, active)
        if not at_curve and not checked:
            return []
        self.clock.lap(training=True)
        ended = [i for i in {*at_curve, *checked} if steps and self._is_over(i, steps)]
        self._evaluate(steps, [i for i in at_curve if i not in {*ended, *self._read_off}])
        if ended:
            for branch in self._trunks.leave(dict.fromkeys(active, steps), ended):
                self._join(branch, steps)
                if branch.trunk in ended:
                    ended.append(branch.follower)
        scores = {i: score_tokens(self._model, self._members[i].rows) for i in sorted(ended)}
        self.clock.add([row for i in scores for row in self._members[i].rows])
        self.clock.lap(training=False)
        self.active = [i for i in self.active if i not in scores]
        return [self._trained(i, steps, scored) for i, scored in scores.items()]

    def _end_plateaus(self, began: int, steps: int) -> None:
        """Start the decay of the law's runs whose loss is flat. One on a trunk is judged by the
        trunk's losses over its own remaining steps, so it never waits on a trunk that decays."""
        there = self._entered(began, (*self._trunks.waiting, *self.active))
        if not (who := [i for i in there if self._schedules.may_decay(i, steps)]):
            return
        trunks = [self._trunks.trunk_of(i) for i in who]
        recent = self._metrics.step_losses[steps // 2 : steps, trunks].T.tolist()
        for i, losses in zip(who, recent, strict=True):
            if self._schedules.decays_now(i, steps, losses):
                self._metrics.ends_at(i, self._schedules.end(i))
                if self._trunks.waits(i):
                    self._join(self._trunks.release(i), steps)

    def _is_over(self, i: int, steps: int) -> bool:
        """Return whether a run has had its steps, or diverged or saturated by its last epoch."""
        recent = self._metrics.recent_loss(i, steps, self._schedules.epoch(i))
        saturated = self._schedules.may_saturate(i, steps) and recent <= self._recipe.stop_loss
        return self._schedules.has_ended(i, steps) or not math.isfinite(recent) or saturated

    def _evaluate(self, steps: int, who: Sequence[int]) -> None:
        if not who:
            return
        rows = [row for i in who for row in self._members[i].rows]
        keep = partial(self._metrics.tokens.keep, steps)
        losses = mean_losses(self._model, rows, len(self._members), keep).tolist()
        self.clock.add(rows)
        for i in who:
            self._metrics.keep_loss(i, steps, losses[i])

    def _join(self, branch: Branch, step: int) -> None:
        """Start a follower as a copy of its trunk, before optimiser step `step`."""
        follower, trunk = branch.follower, branch.trunk
        self._optimizer.copy_adapter(*map(self._model.lora.slot_of, (trunk, follower)))
        samples = [[row.sample for row in self._members[i].rows] for i in (trunk, follower)]
        of_trunk, of_follower = torch.tensor(samples, device=self._model.lora.device)
        self._weights.copy_samples(of_trunk, of_follower)
        self._stopping.copy_samples(of_trunk, of_follower)
        self._dropout.copy(trunk, follower)
        self._metrics.copy(trunk, follower, step)
        self.active = sorted([*self.active, follower])

    def _trained(self, i: int, steps: int, scores: TokenScores) -> TrainedMember:
        decay, pack_steps = self._schedules.decay_start(i), self._began[i] + steps
        return self._metrics.trained(i, steps, decay, scores, self.clock, pack_steps)

    def get_state(self) -> PackState:
        """See Resumable."""
        self.clock.lap(training=True)  # Else a later interval's time would price pending work.
        whole = PackState.of_parts({name: part.get_state() for name, part in self._parts.items()})
        own = {"active": self.active, "began": [*self._began.items()]}
        return PackState(whole.tensors, {**whole.facts, **own}).on_host()

    def set_state(self, state: PackState) -> None:
        """See Resumable."""
        state = state.to(self._model.lora.device)
        for name, part in self._parts.items():
            part.set_state(state.part(name))
        self.active, self._began = list(state.facts["active"]), dict(state.facts["began"])
        self.clock.restart()


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
    """Train every member of a pack to its end.

    Args:
        model, stepper, optimizer: adapters on their base, and what drives and updates them.
        members: adapters with their rows; each counts its own steps.
        recipe, rules: training settings, and those of the MemFT methods.
        on_finished: called with members once they are done; its time is charged to no run.
        on_left_out: called with the gpu_seconds of each dropped member, by its index.
        checkpoints: the pack resumes from the newest; None: none are kept.
        room: rows and positions of a step; members beyond it begin once others end; None: no limit.
        watch: finds members that would exceed the pack's gpu_seconds; None: none is dropped.

    Returns:
        Wall seconds inside optimiser steps.

    Raises:
        AskedToLeave: the process was asked to end; a checkpoint was written first if possible.
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
