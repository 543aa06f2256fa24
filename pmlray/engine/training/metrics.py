"""Measurements of each member of a pack during training and at its end.

Token probabilities come from existing passes, at no extra cost. Shapes: N members, R rows, L
supervised tokens of the longest row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmlray.engine.evaluation.scores import TokenScores
from pmlray.engine.model.batches import MicroBatch
from pmlray.engine.model.device import on_device
from pmlray.engine.runtime.device_clock import DeviceClock
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member

# An adapter diverged if its loss ends above MOST_LOSS times that at its start, the base's unless it
# began with another adapter, plus SLACK_NATS; one that has learnt nothing ends near it.
MOST_LOSS, SLACK_NATS = 2.0, 1.0
# The table of a longer text would make up nearly all of its observation's file.
MOST_TOKENS = 2048


@dataclass(frozen=True)
class TrainedMember:
    """Measurements of one adapter by the training loop.

    `step_losses`: mean nll of each optimiser step's batch, ends included, before its update.
    `curve`: (step, loss over all targets) after that many steps, from step 0. `gpu_seconds` and
    `wall_seconds`: its part of the pack's cost and time, by work, for optimiser steps and curve
    evaluations together; `charged_steps`: the optimiser steps in them, a step shared with other
    budgets counted in part. `grad_norm`: mean norm of the gradient before clipping, over the last
    tenth of the steps before the decay. `token_p_curve`: as in `Observation`. `pack_steps`: steps
    of the pack when the member ended.
    """

    index: int
    curve: tuple[tuple[int, float], ...]
    step_losses: tuple[float, ...]
    scores: TokenScores
    gpu_seconds: float
    wall_seconds: float
    charged_steps: float
    grad_norm: float
    token_p_curve: tuple[tuple[int, tuple[float, ...]], ...]
    pack_steps: int

    @property
    def divergence(self) -> str | None:
        """Reason why the run has no usable result; None where it has one."""
        if not all(math.isfinite(loss) for _, loss in self.curve):
            return "the loss stopped being a number; lower recipe.learning_rate"
        (_, first), *_, (_, last) = self.curve
        if last > MOST_LOSS * first + SLACK_NATS:
            return (
                f"the loss ended at {last:.3g} nats per token, from {first:.3g} at its"
                " start; lower recipe.learning_rate"
            )
        return None


def curve_steps(train_steps: int) -> frozenset[int]:
    """Return the steps at which a run is evaluated: powers of two, and its last step."""
    return frozenset(2**i for i in range(train_steps.bit_length())) | {train_steps}


def is_curve_step(step: int) -> bool:
    """Return whether a step is 0 or a power of two, a curve step of every run not ended by then."""
    return step & (step - 1) == 0


class PackMetrics:
    """Losses, gradient norms and curves of every member, by its index and its own steps.

    `step_losses`: nats per supervised token, ends included, of each step's batch, before its
    update, (steps, N), NaN where there was no step; on the device, so that no step waits for it.
    """

    def __init__(
        self, members: Sequence[Member], most_steps: Sequence[int], device: torch.device
    ) -> None:
        self.step_losses = torch.full((max(most_steps), len(members)), math.nan, device=device)
        self.tokens = TokenCurves(members)
        self._grad_norms = torch.full_like(self.step_losses, math.nan)
        # Losses of targets that steps over all records computed, at the curve's steps before the
        # last: row 0 before the first step, row k after 2^(k-1).
        n_rows = max(most_steps).bit_length() + 1
        self._read_off = torch.full((n_rows, len(members)), math.nan, device=device)
        self._curves: list[list[tuple[int, float]]] = [[] for _ in members]
        self._curve_at = [curve_steps(most) | {0} for most in most_steps]
        self._charged = [0.0] * len(members)
        # Rows of the tables in use so far.
        self._used = 0

    def keep_step(self, steps: Mapping[int, int], loss_M: Tensor, grad_norm_M: Tensor) -> None:
        """Record a step's losses and gradient norms of M members without waiting for the device.

        steps: number of each member's steps before it, by index. Both tensors (M,).
        """
        self._used = max(self._used, *(step + 1 for step in steps.values()))
        at, who = on_device([[*steps.values()], [*steps]], torch.int64, loss_M.device)
        self.step_losses[at, who] = loss_M
        self._grad_norms[at, who] = grad_norm_M

    def charge(self, i: int, payers: Sequence[int]) -> None:
        """Charge a step of a member to the members that share it, in equal parts."""
        for payer in payers:
            self._charged[payer] += 1.0 / len(payers)

    def is_curve_step(self, i: int, steps: int) -> bool:
        """Return whether a member's curve has a point after so many steps."""
        return steps in self._curve_at[i]

    def ends_at(self, i: int, steps: int) -> None:
        """Move the last point of a member's curve to its new number of steps."""
        self._curve_at[i] = curve_steps(steps) | {0}

    def keep_read_off(
        self, steps: int, who: Collection[int], batches: Sequence[MicroBatch], nll: Sequence[Tensor]
    ) -> None:
        """Record what a step over all records found of members, without waiting for the device.

        steps: the members' steps before it, 0 or a power of two. nll: token losses of each
        micro-batch, (R, L) nats.
        """
        total = torch.zeros_like(self._read_off[0])
        count = torch.zeros_like(total)
        for batch, nll_RL in zip(batches, nll, strict=True):
            mask_RL = batch.target_mask_RL
            of_targets_R = torch.where(mask_RL, nll_RL, 0.0).sum(dim=1)
            total.index_add_(0, batch.adapter_of_row_R, of_targets_R)
            count.index_add_(0, batch.adapter_of_row_R, mask_RL.sum(dim=1).float())
            self.tokens.keep(steps, batch, nll_RL.clone(), who)  # Graphs overwrite it.
        at = on_device(sorted(who), torch.int64, total.device)
        self._read_off[steps.bit_length(), at] = (total / count)[at]

    def keep_loss(self, i: int, steps: int, loss: float) -> None:
        """Record the loss over all of a member's records after so many steps."""
        self._curves[i].append((steps, loss))

    def recent_loss(self, i: int, steps: int, epoch: int) -> float:
        """Return the mean loss of a member's last `epoch` steps; waits for the device."""
        return self.step_losses[max(0, steps - epoch) : steps, i].mean().item()

    def last_losses(self, steps: Mapping[int, int]) -> dict[int, float]:
        """Return the loss of each member's last step; NaN before the first.

        steps: number of steps each member has had, by index. Waits for the device once.
        """
        at = [max(0, had - 1) for had in steps.values()]
        return dict(zip(steps, self.step_losses[at, [*steps]].tolist(), strict=True))

    @property
    def charged_steps(self) -> float:
        """Adapter-steps taken so far."""
        return sum(self._charged)

    def copy(self, source: int, target: int, steps: int) -> None:
        """Copy a member's measurements of its first `steps` steps to one of the same records."""
        for kept in (self.step_losses, self._grad_norms):
            kept[:steps, target] = kept[:steps, source]
        self._read_off[:, target] = self._read_off[:, source]
        self._curves[target] = list(self._curves[source])
        self.tokens.copy(source, target)

    def trained(
        self,
        i: int,
        steps: int,
        decay: int,
        scores: TokenScores,
        clock: DeviceClock,
        pack_steps: int,
    ) -> TrainedMember:
        """Return the measurements of a member that ends after `steps` steps.

        decay: the step at which its decay began, or would have begun. pack_steps: steps of the pack
        so far.
        """
        losses = tuple(self.step_losses[:steps, i].tolist())
        found = self._read_off[:, i].tolist()
        read_off = ((s, found[s.bit_length()]) for s in sorted(curve_steps(steps) | {0})[:-1])
        curve = (*(tuple(self._curves[i]) or tuple(read_off)), (steps, scores.mean_nll))
        end = max(1, min(steps, decay))
        return TrainedMember(
            i,
            curve,
            losses,
            scores,
            clock.gpu_seconds[i],
            clock.wall_seconds[i],
            self._charged[i],
            self._grad_norms[end - max(1, end // 10) : end, i].mean().item(),
            self.tokens.of(i, steps),
            pack_steps,
        )

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        tokens = self.tokens.get_state()
        tensors = {
            "step_losses": self.step_losses[: self._used],
            "grad_norms": self._grad_norms[: self._used],
            "read_off": self._read_off,
        }
        facts = {
            "curves": self._curves,
            "curve_at": [sorted(steps) for steps in self._curve_at],
            "charged": self._charged,
            "tokens": tokens.facts,
        }
        return PackState(tensors | {f"tokens.{n}": t for n, t in tokens.tensors.items()}, facts)

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        self._used = len(state.tensors["step_losses"])
        self.step_losses[: self._used] = state.tensors["step_losses"]
        self._grad_norms[: self._used] = state.tensors["grad_norms"]
        self._read_off.copy_(state.tensors["read_off"])
        facts = state.facts
        self._curves = [[(step, loss) for step, loss in curve] for curve in facts["curves"]]
        self._curve_at = [frozenset(steps) for steps in facts["curve_at"]]
        self._charged = list(facts["charged"])
        self.tokens.set_state(state.part("tokens"))


class TokenCurves:
    """Losses of every target token at some steps, by the index of a member.

    Tensors stay on their device, so that no step waits for it. Members of more than MOST_TOKENS
    target tokens are left out.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._first = [member.rows[0].sample for member in members]
        self._fits = [sum(r.record.n_targets for r in m.rows) <= MOST_TOKENS for m in members]
        self._nll: list[dict[int, dict[int, Tensor]]] = [{} for _ in members]

    def keep(
        self, steps: int, batch: MicroBatch, nll_RL: Tensor, of: Collection[int] | None = None
    ) -> None:
        """Record the token losses of a pass over whole records after so many steps.

        nll_RL: (R, L) nats. of: the members to record; None: all.
        """
        for row, nll_L in zip(batch.rows, nll_RL.detach(), strict=True):
            i = row.adapter
            if self._fits[i] and (of is None or i in of):
                records = self._nll[i].setdefault(steps, {})
                records[row.sample - self._first[i]] = nll_L[: row.record.n_targets]

    def copy(self, source: int, target: int) -> None:
        """Copy a member's losses to one of the same records."""
        self._nll[target] = dict(self._nll[source])

    def get_state(self) -> PackState:
        """Return all losses end to end, with the (member, steps, record, tokens) of each part."""
        parts, index = [], []
        for i, of_member in enumerate(self._nll):
            for steps, records in of_member.items():
                for record, nll_L in records.items():
                    parts.append(nll_L)
                    index.append((i, steps, record, len(nll_L)))
        nll = torch.cat(parts) if parts else torch.zeros(0)
        return PackState({"nll": nll}, {"stretches": index})

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        self._nll = [{} for _ in self._nll]
        index = state.facts["stretches"]
        parts = state.tensors["nll"].split([tokens for *_, tokens in index]) if index else ()
        for (i, steps, record, _), nll_L in zip(index, parts, strict=True):
            self._nll[i].setdefault(steps, {})[record] = nll_L

    def of(self, i: int, before: int) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """Return (step, p of every token) for the recorded steps before `before`, by record.

        p is rounded to three significant digits, float16's precision, which is short to write.
        """
        table = []
        for step in sorted(s for s in self._nll[i] if s < before):
            records = self._nll[i][step]
            nll = torch.cat([records[r] for r in sorted(records)])
            p = torch.exp(-nll.double()).tolist()
            table.append((step, tuple(float(f"{x:.3g}") for x in p)))
        return tuple(table)
