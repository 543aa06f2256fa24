"""The training loop of a pack: many adapters, one frozen base, no framework of its own.

Shapes: N adapters, R rows, L supervised tokens of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pmlray.config.recipe import Recipe
from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.batches import MicroBatch, Row, micro_batches
from pmlray.engine.evaluate import TokenScores, mean_losses, score_tokens
from pmlray.engine.head import TokenLosses
from pmlray.engine.members import DeviceClock, Member
from pmlray.engine.optimizer import PackedAdamW
from pmlray.engine.token_weights import TokenWeights
from pmlray.memft import weighted_nll_per_row


class Stepper(Protocol):
    """Runs forward, backward and update of an AdaptedModel (bare torch, DeepSpeed, ...)."""

    def losses(self, batch: MicroBatch, keep_TD: Tensor | None) -> TokenLosses:
        """Per-token losses with a graph."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a sum over tokens to those already there."""
        ...

    def step(self) -> None:
        """Update the adapters and clear their gradients."""
        ...


class TorchStepper:
    """The bare loop, without any training framework."""

    def __init__(self, model: AdaptedModel, optimizer: PackedAdamW) -> None:
        self._model, self._optimizer = model, optimizer

    def losses(self, batch: MicroBatch, keep_TD: Tensor | None) -> TokenLosses:
        """See Stepper."""
        return self._model(batch, keep_TD)

    def backward(self, loss: Tensor) -> None:
        """See Stepper."""
        loss.backward()

    def step(self) -> None:
        """See Stepper."""
        self._optimizer.step()
        self._optimizer.zero_grad()


@dataclass(frozen=True)
class TrainedMember:
    """What the loop measured of one adapter.

    `step_losses`: mean nll of each optimiser step's batch, before its update. `curve`: (step,
    loss over all records) after that many steps, from step 0. `device_seconds`: wall time of the
    device shared out by tokens, optimiser steps and curve evaluations together.
    """

    index: int
    curve: tuple[tuple[int, float], ...]
    step_losses: tuple[float, ...]
    scores: TokenScores
    device_seconds: float

    @property
    def diverged(self) -> bool:
        """Whether a loss stopped being a number."""
        return not all(math.isfinite(loss) for _, loss in self.curve)


def curve_steps(train_steps: int) -> frozenset[int]:
    """Log-spaced steps at which a run is evaluated: powers of two, and the end."""
    return frozenset(2**i for i in range(train_steps.bit_length())) | {train_steps}


def train_pack(
    model: AdaptedModel,
    stepper: Stepper,
    optimizer: PackedAdamW,
    members: Sequence[Member],
    recipe: Recipe,
    *,
    threshold: float,
    temporal: bool,
    on_finished: Callable[[Sequence[TrainedMember]], None],
) -> float:
    """Train every member to its own end; returns wall seconds inside optimiser steps.

    `on_finished` is called with the members that are done as soon as they are, while the others go
    on; its time counts for nobody. `temporal` selects MemFT's curriculum instead of its window for
    `memft_sw`.
    """
    n = len(members)
    device = model.lora.A.device
    weights = TokenWeights(members, threshold, temporal)
    dropout = [torch.Generator(device).manual_seed(m.run.seed) for m in members]
    longest = max(m.train_steps for m in members)
    step_losses = torch.full((longest, n), math.nan, device=device)
    curves: list[list[tuple[int, float]]] = [[] for _ in members]
    clock = DeviceClock(n, device)
    in_batches: tuple[Row, ...] = ()
    batches: tuple[MicroBatch, ...] = ()
    active = list(range(n))

    # Such a run's next step starts with the loss that an evaluation would find.
    read_off = [
        recipe.dropout == 0 and m.sees_everything(recipe.batch_size, temporal) for m in members
    ]

    def evaluate(step: int, who: Sequence[int]) -> None:
        rows = [row for i in who for row in members[i].rows]
        losses = mean_losses(model, rows, n).tolist()
        clock.add(rows)
        for i in who:
            curves[i].append((step, losses[i]))

    if unread := [i for i in active if not read_off[i]]:
        evaluate(0, unread)
    clock.lap(training=False)
    for step in range(longest):
        rows = tuple(
            row for i in active for row in members[i].rows_at(step, recipe.batch_size, temporal)
        )
        if rows != in_batches:
            in_batches, batches = rows, micro_batches(rows)
        weight_sum_N = torch.zeros(n, device=device)
        loss_sum_N, count_N = torch.zeros_like(weight_sum_N), torch.zeros_like(weight_sum_N)
        for batch in batches:
            losses = stepper.losses(batch, _dropout_mask(batch, dropout, recipe.dropout))
            nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
            w_RL = weights(batch, nll_RL, wrong_RL)
            sum_R, weight_sum_R = weighted_nll_per_row(nll_RL, w_RL)
            stepper.backward(sum_R.sum())
            at = batch.adapter_of_row_R
            weight_sum_N.index_add_(0, at, weight_sum_R)
            loss_sum_N.index_add_(0, at, nll_RL.detach().sum(dim=1))
            count_N.index_add_(0, at, batch.mask_RL.sum(dim=1).float())
        step_losses[step] = loss_sum_N / count_N
        rates = [
            recipe.rate_at(step, m.train_steps) if i in active else 0.0
            for i, m in enumerate(members)
        ]
        optimizer.prepare(torch.tensor(rates, device=device), weight_sum_N)
        stepper.step()
        clock.add(rows)
        due = [i for i in active if step + 1 in curve_steps(members[i].train_steps)]
        if not due:
            continue
        clock.lap(training=True)
        before = step_losses[step].tolist()
        ended = [i for i in due if _is_over(members[i], step + 1, before[i])]
        if unread := [i for i in due if i not in ended and not read_off[i]]:
            evaluate(step + 1, unread)
        finished = [(i, score_tokens(model, members[i].rows)) for i in ended]
        clock.add([row for i in ended for row in members[i].rows])
        clock.lap(training=False)
        active = [i for i in active if i not in ended]
        if finished:
            on_finished(
                [
                    _trained(i, step + 1, curves[i], step_losses[:, i], scores, clock.seconds[i])
                    for i, scores in finished
                ]
            )
        clock.restart()
        if not active:
            break
    return clock.training_seconds


def _is_over(member: Member, steps: int, loss: float) -> bool:
    return steps >= member.train_steps or not math.isfinite(loss)


def _trained(
    index: int,
    steps: int,
    evaluated: Sequence[tuple[int, float]],
    step_losses: Tensor,
    scores: TokenScores,
    device_seconds: float,
) -> TrainedMember:
    losses = tuple(step_losses[:steps].tolist())
    curve = tuple(evaluated) or tuple((s, losses[s]) for s in sorted(curve_steps(steps) | {0})[:-1])
    return TrainedMember(index, (*curve, (steps, scores.mean_nll)), losses, scores, device_seconds)


def _dropout_mask(
    batch: MicroBatch, generators: Sequence[torch.Generator], dropout: float
) -> Tensor | None:
    """Drawn row by row from each adapter's own generator, so that a pack's other members change
    nothing."""
    if not dropout:
        return None
    kept = [
        torch.empty(row.record.hidden_TD.shape, device=batch.hidden_TD.device).bernoulli_(
            1 - dropout, generator=generators[row.adapter]
        )
        for row in batch.rows
    ]
    return torch.cat(kept) / (1 - dropout)
