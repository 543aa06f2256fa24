"""The training loop of a pack: many adapters, one frozen base, no framework of its own.

Shapes: N adapters, R rows, L supervised tokens of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pmlray.config.recipe import Recipe
from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.batches import MicroBatch, Row, micro_batches
from pmlray.engine.checkpoints import Checkpoints
from pmlray.engine.early_stop import STEPS_BETWEEN_LOOKS, broken_runs, can_stop, largest_change
from pmlray.engine.evaluate import TokenScores, mean_losses, score_tokens
from pmlray.engine.members import DeviceClock, Member
from pmlray.engine.optimizer import PackedAdamW
from pmlray.engine.redistribute import MAX_STRETCH
from pmlray.engine.stepper import Stepper
from pmlray.engine.token_curves import TokenCurves
from pmlray.engine.token_weights import TokenWeights
from pmlray.engine.trained import TrainedMember, curve_steps, is_curve_step
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
        self._dropout = [torch.Generator(device).manual_seed(m.run.seed) for m in members]
        self._trunks = Trunks(members, recipe, rules)
        self.active = [i for i in range(n) if not self._trunks.waits(i)]
        self.clock = DeviceClock(n, device, self._trunks.payers, model.head_work)
        self._watched = WatchedRuns(members, recipe, rules, model.head_work)
        self._most_steps = [
            m.train_steps * (MAX_STRETCH if i in self._watched.redistributed else 1)
            for i, m in enumerate(members)
        ]
        self._step_losses = torch.full((max(self._most_steps), n), math.nan, device=device)
        self._grad_norms = torch.full_like(self._step_losses, math.nan)
        self._curves: list[list[tuple[int, float]]] = [[] for _ in members]
        self._curve_at = [curve_steps(most) | {0} for most in self._most_steps]
        self._charged = [0.0] * n
        # Steps at the constant rate that a run was spared.
        self._spared = [0] * n
        # Such a run's next step starts with the loss that an evaluation would find.
        self._read_off = {
            i
            for i, m in enumerate(members)
            if recipe.dropout == 0 and m.sees_everything(recipe.batch_size, rules)
        }
        self._token_curves = TokenCurves(members)
        self._rows: tuple[Row, ...] = ()
        self._batches: tuple[MicroBatch, ...] = ()

    def train_step(self, step: int) -> None:
        """One optimiser step of all active adapters."""
        for branch in self._trunks.leave(step):
            self._join(branch, step)
        recipe, n, device = self._recipe, len(self._members), self._step_losses.device
        rows_of = {i: self._rows_of(i, step) for i in self.active}
        rows = tuple(row for own in rows_of.values() for row in own)
        if rows != self._rows:
            self._rows, self._batches = rows, micro_batches(rows)
        weight_sum_N = torch.zeros(n, device=device)
        loss_sum_N, count_N = torch.zeros_like(weight_sum_N), torch.zeros_like(weight_sum_N)
        for batch in self._batches:
            losses = self._stepper.losses(batch, self._dropout_mask(batch))
            nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
            w_RL = self._weights(batch, nll_RL, wrong_RL)
            sum_R, weight_sum_R = weighted_nll_per_row(nll_RL, w_RL)
            self._stepper.backward(sum_R.sum())
            self._watched.keep_losses(batch, nll_RL.detach())
            if is_curve_step(step):
                self._token_curves.keep(step, batch, nll_RL, self._read_off)
            at = batch.adapter_of_row_R
            weight_sum_N.index_add_(0, at, weight_sum_R)
            loss_sum_N.index_add_(0, at, nll_RL.detach().sum(dim=1))
            count_N.index_add_(0, at, batch.mask_RL.sum(dim=1).float())
        self._step_losses[step] = loss_sum_N / count_N
        rates = [
            m.rate_at(recipe, self._progress(i, step)) if i in self.active else 0.0
            for i, m in enumerate(self._members)
        ]
        self._optimizer.prepare(torch.tensor(rates, device=device), weight_sum_N)
        self._stepper.step()
        self._grad_norms[step] = self._optimizer.norm_N
        self._watched.stepped(rows_of)
        self.clock.add(rows)
        for i in self.active:
            payers = self._trunks.payers(i)
            for payer in payers:
                self._charged[payer] += 1.0 / len(payers)

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
        at_curve = [i for i in self.active if steps in self._curve_at[i]]
        checked = [
            i for i in self.active if self._may_saturate(i, steps) or self._has_ended(i, steps)
        ] + broken_runs(self._step_losses, steps, self.active)
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
        recent = self._step_losses[steps // 2 : steps, trunks].T.tolist()
        for i, losses in zip(who, recent, strict=True):
            budget = self._members[i].train_steps
            decay = recipe.decay_start(budget)
            if largest_change(losses, steps, decay, self._epoch(i)) <= recipe.stop_gain:
                self._spared[i] = decay - steps
                self._curve_at[i] = curve_steps(budget - self._spared[i]) | {0}
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
        recent = self._step_losses[max(0, steps - self._epoch(i)) : steps, i].mean().item()
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
        keep = partial(self._token_curves.keep, steps)
        losses = mean_losses(self._model, rows, len(self._members), keep).tolist()
        self.clock.add(rows)
        for i in who:
            self._curves[i].append((steps, losses[i]))

    def _join(self, branch: Branch, step: int) -> None:
        """Let a follower go on by itself from where its trunk stands before `step`."""
        follower, trunk = branch.follower, branch.trunk
        self._optimizer.copy_adapter(trunk, follower)
        samples = [[row.sample for row in self._members[i].rows] for i in (trunk, follower)]
        of_trunk, of_follower = torch.tensor(samples, device=self._step_losses.device)
        self._weights.copy_samples(of_trunk, of_follower)
        self._watched.copy_samples(of_trunk, of_follower)
        self._dropout[follower].set_state(self._dropout[trunk].get_state())
        for kept in (self._step_losses, self._grad_norms):
            kept[:step, follower] = kept[:step, trunk]
        self._curves[follower] = list(self._curves[trunk])
        self._token_curves.copy(trunk, follower)
        self.active = sorted([*self.active, follower])

    def _trained(self, i: int, steps: int, scores: TokenScores) -> TrainedMember:
        losses = tuple(self._step_losses[:steps, i].tolist())
        read_off = ((s, losses[s]) for s in sorted(curve_steps(steps) | {0})[:-1])
        curve = (*(tuple(self._curves[i]) or tuple(read_off)), (steps, scores.mean_nll))
        return TrainedMember(
            i,
            curve,
            losses,
            scores,
            self.clock.seconds[i],
            self._charged[i],
            self._grad_norm(i, steps),
            self._token_curves.of(i, steps),
        )

    def _grad_norm(self, i: int, steps: int) -> float:
        decay = self._recipe.decay_start(self._members[i].train_steps) - self._spared[i]
        end = max(1, min(steps, decay))
        return self._grad_norms[end - max(1, end // 10) : end, i].mean().item()

    def _dropout_mask(self, batch: MicroBatch) -> Tensor | None:
        """Drawn row by row from each adapter's own generator, so that a pack's other members change
        nothing."""
        dropout = self._recipe.dropout
        if not dropout:
            return None
        kept = [
            torch.empty(row.record.hidden_TD.shape, device=batch.hidden_TD.device).bernoulli_(
                1 - dropout, generator=self._dropout[row.adapter]
            )
            for row in batch.rows
        ]
        return torch.cat(kept) / (1 - dropout)
