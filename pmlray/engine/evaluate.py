"""Loss and recall of adapters, read off a teacher-forced pass.

Greedy decoding reproduces a target exactly when every teacher-forced argmax is right, so recall
needs no generation; `decodes_exactly` checks that by real decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.base_model import BaseModel
from pmlray.engine.batches import Row, micro_batches
from pmlray.memory import Record
from pmlray.types import Recall


@dataclass(frozen=True, slots=True)
class TokenScores:
    """An adapter's supervised tokens, record by record: nll in nats, argmax wrong or not."""

    nll: tuple[tuple[float, ...], ...]
    wrong: tuple[tuple[bool, ...], ...]

    @property
    def mean_nll(self) -> float:
        """Loss in nats per supervised token."""
        return sum(map(sum, self.nll)) / sum(map(len, self.nll))

    @property
    def token_p(self) -> tuple[float, ...]:
        """Probability of every supervised token, records one after another."""
        flat = torch.tensor([x for row in self.nll for x in row], dtype=torch.float64)
        return tuple(torch.exp(-flat).tolist())

    @property
    def wrong_tokens(self) -> tuple[int, ...]:
        """Indices into `token_p` whose argmax is wrong."""
        flat = [x for row in self.wrong for x in row]
        return tuple(i for i, wrong in enumerate(flat) if wrong)

    @property
    def recall(self) -> Recall:
        """What greedy decoding would reproduce."""
        tokens = sum(map(len, self.wrong))
        prefix = sum(row.index(True) if True in row else len(row) for row in self.wrong)
        return Recall(
            token=1 - len(self.wrong_tokens) / tokens,
            prefix=prefix / tokens,
            exact=sum(not any(row) for row in self.wrong) / len(self.wrong),
            n_stubborn=sum(p <= 0.5 for p in self.token_p),
        )


@torch.no_grad()
def mean_losses(model: AdaptedModel, rows: Sequence[Row], n_adapters: int) -> torch.Tensor:
    """Mean nll of each adapter over its rows, (n_adapters,) fp64; NaN where it has none."""
    device = rows[0].record.hidden_TD.device
    total = torch.zeros(n_adapters, dtype=torch.float64, device=device)
    count = torch.zeros_like(total)
    for batch in micro_batches(rows):
        nll_RL = batch.lay_out(model(batch).nll_N)
        total.index_add_(0, batch.adapter_of_row_R, nll_RL.sum(dim=1).double())
        count.index_add_(0, batch.adapter_of_row_R, batch.mask_RL.sum(dim=1).double())
    return total / count


@torch.no_grad()
def score_tokens(model: AdaptedModel, rows: Sequence[Row]) -> TokenScores:
    """Score every supervised token of one adapter's rows, in the order of their samples."""
    nll: dict[int, tuple[float, ...]] = {}
    wrong: dict[int, tuple[bool, ...]] = {}
    for batch in micro_batches(rows):
        losses = model(batch)
        nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
        for r, row in enumerate(batch.rows):
            n = row.record.targets_L.shape[0]
            nll[row.sample] = tuple(nll_RL[r, :n].double().tolist())
            wrong[row.sample] = tuple(wrong_RL[r, :n].tolist())
    order = sorted(nll)
    return TokenScores(tuple(nll[s] for s in order), tuple(wrong[s] for s in order))


@torch.no_grad()
def decodes_exactly(
    base: BaseModel,
    weights: tuple[torch.Tensor, torch.Tensor],
    records: Sequence[Record],
    max_tokens: int,
) -> bool | None:
    """Whether real greedy decoding reproduces the records, up to `max_tokens` tokens in all.

    weights: A (X, r) and B (r, D). None when not even the first record is within `max_tokens`.
    """
    a, b = weights
    checked, budget = 0, max_tokens
    with base.with_adapter(lambda x: x.to(a.dtype) @ a @ b):
        for record in records:
            budget -= len(record.target_ids)
            if budget < 0:
                break
            prompt = torch.tensor([record.prompt_ids], device=base.device)
            output = base.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=len(record.target_ids),
                do_sample=False,
                pad_token_id=0,
            )
            if tuple(output[0, prompt.shape[1] :].tolist()) != tuple(record.target_ids):
                return False
            checked += 1
    return True if checked else None
