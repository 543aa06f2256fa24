"""The training loop of a pack: many adapters, one frozen base, no framework of its own.

Shapes: N adapters, R rows, L supervised tokens of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from pmlray.config.recipe import Recipe
from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.batches import MicroBatch, Row, micro_batches
from pmlray.engine.checkpoints import Checkpoints
from pmlray.engine.dropout import Dropout
from pmlray.engine.early_stop import STEPS_BETWEEN_LOOKS, broken_runs, can_stop, largest_change
from pmlray.engine.evaluate import TokenScores, mean_losses, score_tokens
from pmlray.engine.members import DeviceClock, Member
from pmlray.engine.optimizer import PackedAdamW
from pmlray.engine.pack_state import Part, State
from pmlray.engine.redistribute import MAX_STRETCH
from pmlray.engine.stepper import Stepper
from pmlray.engine.token_weights import TokenWeights
from pmlray.engine.tracks import Tracks
from pmlray.engine.trained import TrainedMember, is_curve_step
from pmlray.engine.trunks import Branch, Trunks
from pmlray.engine.watched import WatchedRuns
from pmlray.memft import weighted_nll_per_row
from pmlray.types import MemftRules


def train_pack(
    model: AdaptedModel,
    stepper: Stepper,
    optimizer: PackedAdamW,
    members: Sequence[Member],
    recipe: Recipe,
    *,
    rules: MemftRules,
    on_finished: Callable[[Sequence[TrainedMember]], None],
    checkpoints: Checkpoints | None = None,
) -> float:
    """Train every member to its own end; returns wall seconds inside optimiser steps.

    `on_finished` is called with the members that are done as soon as they are, while the others go
    on; its time counts for nobody. With `checkpoints` a pack goes on from where the last was taken.
    """
    pack = _PackLoop(model, stepper, optimizer, members, recipe, rules)
    step = 0 if checkpoints is None else checkpoints.resume(pack)
    if not step:
        pack.look(0)
    while pack.active:
        pack.train_step(step)
        step += 1
        if finished := pack.look(step):
            on_finished(finished)
            pack.clock.restart()
        if checkpoints is not None:
            checkpoints.after(pack, step, bool(finished))
    return pack.clock.training_seconds


class _PackLoop:
    """The state of a pack while it trains; `active` are the adapters that take steps."""

    def __init__(
        self,
        model: AdaptedModel,
        stepper: Stepper,
        optimizer: PackedAdamW,
        members: Sequence[Member],
        recipe: Recipe,
        rules: MemftRules,
    ) -> None:
        self._model, self._stepper, self._optimizer = model, stepper, optimizer
        self._members, self._recipe, self._rules = members, recipe, rules
        n, device = len(members), model.lora.A.device
        self._weights = TokenWeights(members, rules)
        self._dropout = Dropout(members, recipe.dropout, device)
        self._trunks = Trunks(members, recipe, rules)
        self.active = [i for i in range(n) if not self._trunks.waits(i)]
        self.clock = DeviceClock(n, device, self._trunks.payers, model.head_work)
        self._watched = WatchedRuns(members, recipe, rules, model.head_work)
        self._most_steps = [
            m.train_steps * (MAX_STRETCH if i in self._watched.redistributed else 1)
            for i, m in enumerate(members)
        ]
        self._tracks = Tracks(members, self._most_steps, device)
        # Steps at the constant rate that a run was spared.
        self._spared = [0] * n
        # Such a run's next step starts with the loss that an evaluation would find.
        self._read_off = {
            i
            for i, m in enumerate(members)
            if recipe.dropout == 0 and m.sees_everything(recipe.batch_size, rules)
        }
        self._parts: Mapping[str, Part] = {
            "optimizer": optimizer,
            "weights": self._weights,
            "dropout": self._dropout,
            "trunks": self._trunks,
            "clock": self.clock,
            "watched": self._watched,
            "tracks": self._tracks,
        }
        self._rows: tuple[Row, ...] = ()
        self._batches: tuple[MicroBatch, ...] = ()

    def train_step(self, step: int) -> None:
        """One optimiser step of all active adapters."""
        for branch in self._trunks.leave(step):
            self._join(branch, step)
        recipe, n, device = self._recipe, len(self._members), self._model.lora.A.device
        rows_of = {i: self._rows_of(i, step) for i in self.active}
        rows = tuple(row for own in rows_of.values() for row in own)
        if rows != self._rows:
            self._rows, self._batches = rows, micro_batches(rows)
        weight_sum_N = torch.zeros(n, device=device)
        loss_sum_N, count_N = torch.zeros_like(weight_sum_N), torch.zeros_like(weight_sum_N)
        for batch in self._batches:
            losses = self._stepper.losses(batch, self._dropout.mask(batch))
            nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
            w_RL = self._weights(batch, nll_RL, wrong_RL)
            sum_R, weight_sum_R = weighted_nll_per_row(nll_RL, w_RL)
            self._stepper.backward(sum_R.sum())
            self._watched.keep_losses(batch, nll_RL.detach())
            if is_curve_step(step):
                self._tracks.tokens.keep(step, batch, nll_RL, self._read_off)
            at = batch.adapter_of_row_R
            weight_sum_N.index_add_(0, at, weight_sum_R)
            loss_sum_N.index_add_(0, at, nll_RL.detach().sum(dim=1))
            count_N.index_add_(0, at, batch.mask_RL.sum(dim=1).float())
        rates = [
            m.rate_at(recipe, self._progress(i, step)) if i in self.active else 0.0
            for i, m in enumerate(self._members)
        ]
        self._optimizer.prepare(torch.tensor(rates, device=device), weight_sum_N)
        self._stepper.step()
        self._tracks.keep_step(step, loss_sum_N / count_N, self._optimizer.norm_N)
        self._watched.stepped(rows_of)
        self.clock.add(rows)
        for i in self.active:
            self._tracks.charge(i, self._trunks.payers(i))

    def _rows_of(self, i: int, step: int) -> tuple[Row, ...]:
        if i in self._watched.redistributed:
            return self._watched.redistributed[i].next_rows()
        return self._members[i].rows_at(step, self._recipe.batch_size, self._rules)

    def _progress(self, i: int, steps: int) -> float:
        """How far a run is on its schedule, in its own nominal steps."""
        if i in self._watched.redistributed:
            return self._watched.redistributed[i].progress
        return steps + self._spared[i]

    def look(self, steps: int) -> list[TrainedMember]:
        """After so many steps: evaluate the curves that are due, and let go of those that ended."""
        self._end_plateaus(steps)
        if due := self._watched.due(steps, self.active):
            self.clock.lap(training=True)
            self.clock.add(self._watched.check(steps, due, self._model))
        at_curve = [i for i in self.active if self._tracks.is_curve_step(i, steps)]
        checked = [
            i for i in self.active if self._may_saturate(i, steps) or self._has_ended(i, steps)
        ] + broken_runs(self._tracks.step_losses, steps, self.active)
        if not at_curve and not checked:
            return []
        self.clock.lap(training=True)
        ended = [i for i in {*at_curve, *checked} if steps and self._is_over(i, steps)]
        self._evaluate(steps, [i for i in at_curve if i not in {*ended, *self._read_off}])
        if ended:
            for branch in self._trunks.leave(steps, ended):
                self._join(branch, steps)
                if branch.trunk in ended:
                    ended.append(branch.follower)
        scores = {i: score_tokens(self._model, self._members[i].rows) for i in sorted(ended)}
        self.clock.add([row for i in scores for row in self._members[i].rows])
        self.clock.lap(training=False)
        self.active = [i for i in self.active if i not in scores]
        return [self._trained(i, steps, scored) for i, scored in scores.items()]

    def _end_plateaus(self, steps: int) -> None:
        """Let the law's runs decay that the rest of their constant rate would no longer move.

        Budgets that share a trunk are judged by its losses, each over its own way ahead: a shorter
        one is never flat later than its trunk, so that none is left waiting on a trunk that decays.
        """
        recipe = self._recipe
        who = [
            i
            for i in (*self._trunks.waiting, *self.active)
            if self._may_look(i, steps)
            and not self._spared[i]
            and can_stop(recipe, steps, self._members[i].train_steps)
        ]
        if not who:
            return
        trunks = [self._trunks.trunk_of(i) for i in who]
        recent = self._tracks.step_losses[steps // 2 : steps, trunks].T.tolist()
        for i, losses in zip(who, recent, strict=True):
            budget = self._members[i].train_steps
            decay = recipe.decay_start(budget)
            if largest_change(losses, steps, decay, self._epoch(i)) <= recipe.stop_gain:
                self._spared[i] = decay - steps
                self._tracks.ends_at(i, budget - self._spared[i])
                if self._trunks.waits(i):
                    self._join(self._trunks.release(i), steps)

    def _epoch(self, i: int) -> int:
        """Steps in which all of a run's records have had their part."""
        return math.ceil(len(self._members[i].rows) / self._recipe.batch_size)

    def _may_look(self, i: int, steps: int) -> bool:
        """Whether a run may end early now."""
        of_law = self._members[i].run.phase == "law"
        return of_law and steps > 0 and steps % STEPS_BETWEEN_LOOKS == 0

    def _may_saturate(self, i: int, steps: int) -> bool:
        return self._recipe.stop_loss > 0 and self._may_look(i, steps)

    def _is_over(self, i: int, steps: int) -> bool:
        """Whether a run has had its steps, has diverged, or has nothing left to learn.

        The last is judged over the last epoch, that all of its records have part in it.
        """
        recent = self._tracks.recent_loss(i, steps, self._epoch(i))
        saturated = self._may_saturate(i, steps) and recent <= self._recipe.stop_loss
        return self._has_ended(i, steps) or not math.isfinite(recent) or saturated

    def _has_ended(self, i: int, steps: int) -> bool:
        """Whether a run has had its steps, or has nothing left that it would train."""
        if self._watched.done(i):
            return True
        had = self._progress(i, steps) >= self._members[i].train_steps
        return had or steps >= self._most_steps[i]

    def _evaluate(self, steps: int, who: Sequence[int]) -> None:
        if not who:
            return
        rows = [row for i in who for row in self._members[i].rows]
        keep = partial(self._tracks.tokens.keep, steps)
        losses = mean_losses(self._model, rows, len(self._members), keep).tolist()
        self.clock.add(rows)
        for i in who:
            self._tracks.keep_loss(i, steps, losses[i])

    def _join(self, branch: Branch, step: int) -> None:
        """Let a follower go on by itself from where its trunk stands before `step`."""
        follower, trunk = branch.follower, branch.trunk
        self._optimizer.copy_adapter(trunk, follower)
        samples = [[row.sample for row in self._members[i].rows] for i in (trunk, follower)]
        of_trunk, of_follower = torch.tensor(samples, device=self._model.lora.A.device)
        self._weights.copy_samples(of_trunk, of_follower)
        self._watched.copy_samples(of_trunk, of_follower)
        self._dropout.copy(trunk, follower)
        self._tracks.copy(trunk, follower, step)
        self.active = sorted([*self.active, follower])

    def _trained(self, i: int, steps: int, scores: TokenScores) -> TrainedMember:
        decay = self._recipe.decay_start(self._members[i].train_steps) - self._spared[i]
        return self._tracks.trained(i, steps, decay, scores, self.clock.seconds[i])

    def take_out(self) -> State:
        """See Resumable."""
        # What was worked for and not yet shared out would be shared out by someone else's time.
        self.clock.lap(training=True)
        whole = State.of_parts({name: part.take_out() for name, part in self._parts.items()})
        adapters = {name: p.data for name, p in self._model.lora.named_parameters()}
        own = {"active": self.active, "spared": self._spared}
        return State(whole.tensors | adapters, whole.facts | own).on_host()

    @torch.no_grad()
    def put_back(self, state: State) -> None:
        """See Resumable."""
        state = state.to(self._model.lora.A.device)
        for name, part in self._parts.items():
            part.put_back(state.part(name))
        for name, p in self._model.lora.named_parameters():
            p.copy_(state.tensors[name])
        self.active, self._spared = list(state.facts["active"]), list(state.facts["spared"])
        self.clock.restart()
