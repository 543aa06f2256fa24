"""Loss and recall of adapters, from a teacher-forced pass.

Greedy decoding reproduces a target exactly when every teacher-forced argmax is right, so recall
needs no generation; `decode_exactly` checks that by generating.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from pmlray.config.adapters.placement import Site
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.adapters.packed_factors import AdapterWeights
from pmlray.engine.evaluation.plain_greedy import answer_greedily
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import MAX_MICRO_BATCH_TOKENS, MicroBatch, Row, micro_batches
from pmlray.memory import Record
from pmlray.types import Recall

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of an adapter's supervised tokens, by record: nll in nats, and argmax errors.

    `ends`: True if each record's last supervised token is the end that follows its target.
    """

    nll: tuple[tuple[float, ...], ...]
    wrong: tuple[tuple[bool, ...], ...]
    ends: bool = False

    @property
    def mean_nll(self) -> float:
        """Loss in nats per target token."""
        return sum(map(sum, self._of_targets(self.nll))) / sum(map(len, self._of_targets(self.nll)))

    @property
    def token_p(self) -> tuple[float, ...]:
        """Probability of every target token, records one after another."""
        return _probabilities([x for row in self._of_targets(self.nll) for x in row])

    @property
    def end_p(self) -> tuple[float, ...]:
        """Probability of each record's end after its target; empty where no end is supervised."""
        return _probabilities([row[-1] for row in self.nll]) if self.ends else ()

    @property
    def wrong_tokens(self) -> tuple[int, ...]:
        """Indices into `token_p` whose argmax is wrong."""
        flat = [x for row in self._of_targets(self.wrong) for x in row]
        return tuple(i for i, wrong in enumerate(flat) if wrong)

    @property
    def recall(self) -> Recall:
        """Recall under greedy decoding."""
        of_targets, n = self._of_targets(self.wrong), len(self.wrong)
        tokens = sum(map(len, of_targets))
        prefix = sum(row.index(True) if True in row else len(row) for row in of_targets)
        answered = sum(not any(row) for row in of_targets) / n
        return Recall(
            token=1 - len(self.wrong_tokens) / tokens,
            prefix=prefix / tokens,
            exact=sum(not any(row) for row in self.wrong) / n,
            n_stubborn=sum(p <= 0.5 for p in self.token_p),
            answered=answered if self.ends else None,
        )

    def _of_targets(self, rows: tuple[tuple[T, ...], ...]) -> tuple[tuple[T, ...], ...]:
        return tuple(row[:-1] for row in rows) if self.ends else rows


def _probabilities(nll: Sequence[float]) -> tuple[float, ...]:
    return tuple(torch.exp(-torch.tensor(nll, dtype=torch.float64)).tolist())


@torch.no_grad()
def mean_losses(
    model: AdaptedModel,
    rows: Sequence[Row],
    n_adapters: int,
    keep: Callable[[MicroBatch, Tensor], None],
) -> Tensor:
    """Return the mean nll of each adapter's target tokens, (n_adapters,) fp64; NaN without rows.

    keep: called with every micro-batch and its token losses, (R, L) nats.
    """
    device = rows[0].record.hidden_TD.device
    total = torch.zeros(n_adapters, dtype=torch.float64, device=device)
    count = torch.zeros_like(total)
    for batch in micro_batches(rows):
        nll_RL = batch.lay_out(model(batch).nll_N)
        keep(batch, nll_RL)
        mask_RL = batch.target_mask_RL
        of_targets_R = torch.where(mask_RL, nll_RL, 0.0).sum(dim=1)
        total.index_add_(0, batch.adapter_of_row_R, of_targets_R.double())
        count.index_add_(0, batch.adapter_of_row_R, mask_RL.sum(dim=1).double())
    return total / count


def bare_losses(model: AdaptedModel, rows: Sequence[Row], n_adapters: int) -> list[float]:
    """Return the mean nll of the target tokens of each adapter's rows, without the adapter."""
    with model.without_adapters():
        return mean_losses(model, rows, n_adapters, lambda *_: None).tolist()


@torch.no_grad()
def score_tokens(model: AdaptedModel, rows: Sequence[Row]) -> TokenScores:
    """Score every supervised token of one adapter's rows, in the order of their samples.

    Either all records have an end, or none.
    """
    nll: dict[int, tuple[float, ...]] = {}
    wrong: dict[int, tuple[bool, ...]] = {}
    for batch in micro_batches(rows):
        losses = model(batch)
        nll_RL, wrong_RL = batch.lay_out(losses.nll_N), batch.lay_out(losses.wrong_N)
        for r, row in enumerate(batch.rows):
            n = row.record.n_supervised
            nll[row.sample] = tuple(nll_RL[r, :n].double().tolist())
            wrong[row.sample] = tuple(wrong_RL[r, :n].tolist())
    order = sorted(nll)
    return TokenScores(
        tuple(nll[s] for s in order), tuple(wrong[s] for s in order), rows[0].record.ends
    )


@dataclass(frozen=True, eq=False)
class Decoding:
    """One adapter, A (X, r) and B (r, D) by site and the factor of their product, and the records
    to decode with it."""

    weights: AdapterWeights
    scale: float
    records: tuple[Record, ...]


@torch.no_grad()
def decode_exactly(
    base: BaseModel, decodings: Sequence[Decoding], max_tokens: int
) -> tuple[bool | None, ...]:
    """Return whether greedy decoding reproduces each adapter's records, all adapters at once.

    With the end after a record where one is supervised.

    An adapter's first records are decoded, up to `max_tokens` target tokens in all; None when even
    the first has more. Rows whose prompts are equally long share a call, so that none is padded.
    """
    chosen = [_within(decoding.records, max_tokens) for decoding in decodings]
    same_prompt: dict[int, list[tuple[int, Record]]] = {}
    for d, records in enumerate(chosen):
        for record in records:
            same_prompt.setdefault(len(record.prompt_ids), []).append((d, record))
    right = [True] * len(decodings)
    for rows in same_prompt.values():
        longest = max(len(record.target_ids) for _, record in rows)
        per_call = max(1, MAX_MICRO_BATCH_TOKENS // (len(rows[0][1].prompt_ids) + longest))
        for start in range(0, len(rows), per_call):
            part = rows[start : start + per_call]
            texts = _answers(base, [(decodings[d], record) for d, record in part])
            for (d, record), ids in zip(part, texts, strict=True):
                right[d] &= ids == record.supervised_ids
    return tuple(ok if records else None for ok, records in zip(right, chosen, strict=True))


def _within(records: Sequence[Record], max_tokens: int) -> list[Record]:
    kept = []
    for record in records:
        max_tokens -= len(record.target_ids)
        if max_tokens < 0:
            break
        kept.append(record)
    return kept


def _answers(base: BaseModel, rows: Sequence[tuple[Decoding, Record]]) -> list[tuple[int, ...]]:
    """Return greedy answers to equally long prompts, each under its own adapter."""
    used = dict.fromkeys(site for decoding, _ in rows for site in decoding.weights)
    stacked = {site: _stacked(site, [decoding for decoding, _ in rows]) for site in used}
    records = [record for _, record in rows]
    ends = {record.end_id for record in records if record.end_id is not None}

    def delta(site: Site, x: Tensor) -> Tensor | None:
        if site not in stacked:
            return None
        a_RXK, b_RKD = stacked[site]
        # Some families lay rows end to end.
        x_RTX = x.reshape(len(records), -1, x.shape[-1]).to(a_RXK.dtype)
        return (x_RTX @ a_RXK @ b_RKD).view(*x.shape[:-1], -1)

    with base.with_adapter(delta):
        most = [len(record.supervised_ids) for record in records]
        return answer_greedily(base.model, records, ends, most)


def _stacked(site: Site, decodings: Sequence[Decoding]) -> tuple[Tensor, Tensor]:
    """Return A (R, X, K) and B (R, K, D), the scale included, of one site of each row's adapter:
    zero where it has no such site."""
    factors = [decoding.weights.get(site) for decoding in decodings]
    some = next(own for own in factors if own is not None)
    nothing = some[0].new_zeros(len(some[0]), 0), some[1].new_zeros(0, some[1].shape[1])
    given = [nothing if own is None else own for own in factors]
    largest = max(a.shape[1] for a, _ in given)
    a_RXK = torch.stack([pad(a, (0, largest - a.shape[1])) for a, _ in given])
    b_RKD = torch.stack(
        [
            pad(decoding.scale * b, (0, 0, 0, largest - b.shape[0]))
            for (_, b), decoding in zip(given, decodings, strict=True)
        ]
    )
    return a_RXK, b_RKD
