"""Early stopping by token: runs that end, or drop records, once their tokens are recalled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pmlray.config.recipe import Recipe
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.evaluation.scores import score_tokens
from pmlray.engine.model.batches import MicroBatch, Row
from pmlray.engine.runtime.pack_state import PackState
from pmlray.engine.scheduling.members import Member
from pmlray.engine.scheduling.redistribution import Redistribution
from pmlray.engine.scheduling.threshold_stopping import ThresholdStopping
from pmlray.types import MemftRules


class TokenStopping:
    """Runs of a pack that end, or drop records, by the losses of their tokens.

    `redistributed`: the `memft_rd` runs, by index of their member. The others are runs under the
    threshold rule that end once no token is left to train.
    """

    def __init__(
        self, members: Sequence[Member], recipe: Recipe, rules: MemftRules, head_work: float
    ) -> None:
        size = recipe.batch_size
        self.redistributed = {
            i: Redistribution(member, size, rules, head_work)
            for i, member in enumerate(members)
            if member.run.method == "memft_rd"
        }
        self._runs: dict[int, ThresholdStopping] = {
            i: ThresholdStopping(member, size, rules.threshold)
            for i, member in enumerate(members)
            if _settles(member, recipe, rules)
        } | self.redistributed
        rows = [row for member in members for row in member.rows]
        # Loss of every sample's tokens in its last step, nats.
        self._last_nll = torch.full(
            (len(rows), max(row.n_scored for row in rows)),
            math.inf,
            device=rows[0].record.hidden_TD.device,
        )

    def keep_losses(self, batch: MicroBatch, nll_RL: Tensor) -> None:
        """Record a step's token losses, (R, L) nats, without waiting for the device."""
        if self._runs:
            width = nll_RL.shape[1]
            kept_RL = self._last_nll[batch.sample_of_row_R, :width]
            seen_RL = torch.where(batch.mask_RL, nll_RL, kept_RL)
            self._last_nll[batch.sample_of_row_R, :width] = seen_RL

    def copy_samples(self, source: Tensor, target: Tensor) -> None:
        """Copy the losses of samples to others; both int64 (n,)."""
        self._last_nll[target] = self._last_nll[source]

    def stepped(self, rows_of: Mapping[int, Sequence[Row]]) -> None:
        """Count a step of the members in `rows_of`."""
        for i, run in self.redistributed.items():
            if i in rows_of:
                run.stepped(rows_of[i])

    def done(self, i: int) -> bool:
        """Return whether a member's tokens are all recalled, so that none is left to train."""
        return i in self._runs and self._runs[i].done

    def due(self, steps: int, active: Sequence[int]) -> list[int]:
        """Return the active members to check after so many steps."""
        return [i for i in active if i in self._runs and self._runs[i].is_due(steps)]

    def check(self, steps: int, due: Sequence[int], model: AdaptedModel) -> list[Row]:
        """Update runs by their latest token losses, and evaluate the records that they ask for.

        Returns the rows that were evaluated.
        """
        scored: list[Row] = []
        last_nll = self._last_nll.tolist()
        for i in due:
            run = self._runs[i]
            run.checked({row.sample: last_nll[row.sample][: row.n_scored] for row in run.rows})
            if rows := run.to_look_at(steps):
                samples = [row.sample for row in rows]
                found = dict(zip(samples, score_tokens(model, rows).nll, strict=True))
                for sample, losses in found.items():
                    self._last_nll[sample, : len(losses)] = torch.tensor(losses)
                run.looked(steps, found)
                scored += rows
        return scored

    def get_state(self) -> PackState:
        """Return the state that `set_state` restores."""
        return PackState(
            {"last_nll": self._last_nll}, {str(i): r.facts() for i, r in self._runs.items()}
        )

    def set_state(self, state: PackState) -> None:
        """Restore a state returned by `get_state`."""
        self._last_nll.copy_(state.tensors["last_nll"])
        for i, run in self._runs.items():
            run.set_state(state.facts[str(i)])


def _settles(member: Member, recipe: Recipe, rules: MemftRules) -> bool:
    """Return whether a run takes no more steps once all its tokens are recalled.

    Not with dropout, which may still put a token below the threshold, nor under the paper's rules,
    which then take a plain step.
    """
    by_threshold = member.run.method == "memft_ot" or member.grows(rules)
    return by_threshold and rules.compat == "mended" and recipe.dropout == 0
