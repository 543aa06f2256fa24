"""The capacity control: an adapter's loss reduction on fresh text of the same distribution.

It shows what an adapter learnt about the kind of text rather than about its own text. delta_loss
minus it is the unintended memorisation of arXiv 2505.24832, with the frozen base as the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from pmlray.config.prepared_search import PreparedSearch
from pmlray.engine.adapters.adapted_model import AdaptedModel
from pmlray.engine.evaluation.scores import TokenScores, score_tokens
from pmlray.engine.model.base_model import BaseModel
from pmlray.engine.model.batches import Row
from pmlray.engine.model.prefix_cache import CachedRecord
from pmlray.engine.model.prompts import render_prompt, search_end_id
from pmlray.memory import PROSE, Record, fresh_records

Prefixes = Callable[[BaseModel, Sequence[Record]], tuple[CachedRecord, ...]]


@dataclass(frozen=True, slots=True)
class ControlScore:
    """Scores of an adapter on texts that it was not trained on.

    `delta_loss`: loss reduction on fresh text of the same kind, nats per token; `recall`: share of
    those records recalled exactly; `prose_delta_loss`: loss reduction on plain prose, nats per
    token. None where there is no such text, or where it was not asked for.
    """

    delta_loss: float | None
    recall: float | None
    prose_delta_loss: float | None


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Cached fresh text, and its loss without an adapter, nats per token."""

    records: tuple[CachedRecord, ...]
    base_loss: float


class Control:
    """Fresh text of a pack by the length of its runs, cached and scored once without adapters.

    Create it before training, while every adapter's output is still zero. prefixes: returns the
    cached activations of records.
    """

    def __init__(
        self,
        search: PreparedSearch,
        base: BaseModel,
        model: AdaptedModel,
        seq_lens: Iterable[int],
        prefixes: Prefixes,
    ) -> None:
        self._model, self._prefixes = model, prefixes
        spec, tokens = search.spec, search.spec.evaluate.control_tokens
        tokenizer = base.tokenizer.backend_tokenizer
        self._prose: _Fresh | None = None
        if spec.evaluate.prose:
            first, *rest = tokenizer.encode(PROSE).ids
            self._prose = self._fresh(base, (Record((first,), tuple(rest)),))
        self._of_length: dict[int, _Fresh] = {}
        if not tokens:
            return
        render = partial(render_prompt, base.tokenizer, prompt_format=spec.task.prompt_format)
        end_id = search_end_id(search, base.tokenizer)
        used_text = (max(spec.sequences) + 1) * max(spec.space.seq_len)
        records = {
            n: fresh_records(search.task, n, tokens, used_text, tokenizer, render, end_id)
            for n in sorted(set(seq_lens))
        }
        # Runs of different lengths may be scored on the same text.
        fresh = {own: self._fresh(base, own) for own in records.values() if own}
        self._of_length = {n: fresh[own] for n, own in records.items() if own}

    def score(self, adapter: int, seq_len: int) -> ControlScore:
        """Score a trained adapter on texts that it was not trained on."""
        delta_loss, recall, prose_delta_loss = None, None, None
        if (fresh := self._of_length.get(seq_len)) is not None:
            scores = self._scores(adapter, fresh.records)
            delta_loss, recall = fresh.base_loss - scores.mean_nll, scores.recall.exact
        if self._prose is not None:
            scores = self._scores(adapter, self._prose.records)
            prose_delta_loss = self._prose.base_loss - scores.mean_nll
        return ControlScore(delta_loss, recall, prose_delta_loss)

    def _fresh(self, base: BaseModel, records: tuple[Record, ...]) -> _Fresh:
        cached = tuple(record.to(base.device) for record in self._prefixes(base, records))
        with self._model.without_adapters():
            return _Fresh(cached, self._scores(0, cached).mean_nll)

    def _scores(self, adapter: int, records: tuple[CachedRecord, ...]) -> TokenScores:
        return score_tokens(
            self._model, [Row(adapter, i, record) for i, record in enumerate(records)]
        )
