"""The capacity control: what an adapter learnt about the kind of text, not about its text.

Its loss reduction on fresh text of the same distribution (arXiv 2505.24832's unintended
memorisation, with the frozen base as the reference, is what is left of delta_loss without it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pmlray.config.prepared import PreparedSearch
from pmlray.engine.adapted import AdaptedModel
from pmlray.engine.base_model import BaseModel
from pmlray.engine.batches import Row
from pmlray.engine.evaluate import mean_losses
from pmlray.engine.prefix_cache import CachedRecord, build_prefix_cache
from pmlray.memory import PromptRenderer, Record, fresh_records


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Cached fresh text, and its loss without an adapter, nats per token."""

    records: tuple[CachedRecord, ...]
    base_loss: float


class Control:
    """A pack's fresh text by the length of its runs, cached and scored without adapters once.

    Build it before anything is trained: until then no adapter changes anything.
    """

    def __init__(
        self,
        search: PreparedSearch,
        base: BaseModel,
        model: AdaptedModel,
        seq_lens: Iterable[int],
        render_prompt: PromptRenderer,
    ) -> None:
        self._model = model
        spec, tokens = search.spec, search.spec.evaluate.control_tokens
        if not tokens:
            self._of_length: dict[int, _Fresh] = {}
            return
        used_text = (max(spec.sequences) + 1) * max(spec.space.seq_len)
        tokenizer = base.tokenizer.backend_tokenizer
        records = {
            n: fresh_records(search.task, n, tokens, used_text, tokenizer, render_prompt)
            for n in sorted(set(seq_lens))
        }
        # Runs of different lengths may be scored on the same text.
        fresh = {own: self._fresh(base, own) for own in records.values() if own}
        self._of_length = {n: fresh[own] for n, own in records.items() if own}

    def delta_loss(self, adapter: int, seq_len: int) -> float | None:
        """Loss reduction of an adapter on fresh text, nats per token; None where there is none."""
        fresh = self._of_length.get(seq_len)
        return None if fresh is None else fresh.base_loss - self._loss(adapter, fresh.records)

    def _fresh(self, base: BaseModel, records: tuple[Record, ...]) -> _Fresh:
        cached = build_prefix_cache(base, records)
        return _Fresh(cached, self._loss(0, cached))

    def _loss(self, adapter: int, records: tuple[CachedRecord, ...]) -> float:
        rows = [Row(adapter, i, record) for i, record in enumerate(records)]
        return float(mean_losses(self._model, rows, adapter + 1)[adapter])
