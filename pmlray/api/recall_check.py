"""Implementation of `pmlray recall`: training settings of an adapter, and greedy decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pmlray.api.adapters.base import base_of, trained_with
from pmlray.api.records.facts import facts_for
from pmlray.api.records.prompts import default_format
from pmlray.api.status import SECONDS_BETWEEN_LINES
from pmlray.config.adapters.adapter_spec import Probe
from pmlray.config.bases.model_spec import DtypeChoice
from pmlray.config.prepared_search import PreparedSearch
from pmlray.config.record_facts import local_tokenizer
from pmlray.config.search_spec import (
    Budget,
    Design,
    SearchSpec,
    Space,
    Task,
)
from pmlray.engine.adapters.stored_adapter import read_adapter
from pmlray.engine.evaluation.greedy_decode import decode_records
from pmlray.engine.model.device import pick_device
from pmlray.engine.model.prompts import end_token_ids, render_prompt
from pmlray.errors import ModelError
from pmlray.memory import RecordSource, TaskSource, build_memory, encode_texts
from pmlray.study.sizing.decoded_records import DecodedRecords


@dataclass(frozen=True)
class RecallRequest:
    """Adapter and records to check.

    A setting that is None is taken from the adapter's card or from the search of its store. `end`:
    whether a record counts as recalled only where the answer ends after it.
    """

    adapter: Path
    records: RecordSource
    model: str | None
    revision: str | None
    dtype: DtypeChoice
    prompt_format: Literal["plain", "chat"] | None
    end: bool | None = None


def prepare_recall(request: RecallRequest) -> PreparedSearch:
    """Return the check as the task of a search, before any model is loaded.

    Without a card or a store's search beside the adapter the dtype is the device's, prompts are as
    `default_format` says, answers are to end, and the base is the one that the adapter names.
    Raises ModelError, DataError or StoreError.
    """
    adapter = read_adapter(request.adapter)
    known = trained_with(request.adapter)
    model, source = base_of(
        request.adapter, adapter, known, request.model, request.revision, request.dtype
    )
    if (last := adapter.placement.layers[-1]) >= source.geometry.n_layers:
        raise ModelError(
            f"{request.adapter} adapts layer {last}, but {model.id} has layers 0 to"
            f" {source.geometry.n_layers - 1}: it belongs to another model"
        )
    prompt_format = (
        request.prompt_format
        or known.get("prompt_format")
        or default_format(request.records, model.id, source)
    )
    tokenizer = local_tokenizer(source)
    facts = facts_for(request.records, model, source, tokenizer, prompt_format, keep_lost=True)
    spec = SearchSpec(
        name="recall",
        task=Task(
            kind="records",
            records=str(request.records),
            prompt_format=prompt_format,
            end=known.get("end", True) if request.end is None else request.end,
        ),
        model=model,
        # The adapter brings its own sites; a search names some.
        probe=Probe(layer=last),
        space=Space(lora_rank=(adapter.lora_rank,), seq_len=(1,), train_steps=(1,)),
        design=Design(n_initial=1),
        budget=Budget(gpu_seconds=1.0),
    )
    return PreparedSearch(spec, source, TaskSource("records", 0, pairs=facts.pairs), facts)


def decode_task(search: PreparedSearch, folder: Path, say: Callable[[str], None]) -> DecodedRecords:
    """Decode every record of a search's task greedily under the adapter in a folder.

    A record whose target the tokenizer changes is never recalled: its tokens are another text.
    """
    if search.facts is not None:
        for line in filter(None, (search.duplicates, search.facts.describe_lost())):
            say(line)
    adapter = read_adapter(folder)
    base = adapter.load_base(search.spec.model, search.source, pick_device())
    tokenizer = base.tokenizer.backend_tokenizer
    pairs = search.task.pairs or ()
    total = sum(map(len, encode_texts(tokenizer, [target for _, target in pairs])))
    render = partial(render_prompt, base.tokenizer, prompt_format=search.spec.task.prompt_format)
    records = build_memory(search.task, 0, total, tokenizer, render).records
    say(f"decoding {len(records)} records greedily with {adapter.title}")
    ends = end_token_ids(base.tokenizer, base.model)
    if search.spec.task.end and not ends:
        raise ModelError(
            f"{search.spec.model.id} has no end token, so that no answer can end; --no-end counts"
            " answers that begin with their target"
        )
    if inside := sum(not ends.isdisjoint(record.target_ids) for record in records):
        say(
            f"{inside} targets hold an end token: decoding goes on behind it here, but"
            " transformers' generate stops there unless eos_token_id is another"
        )
    told_at = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= SECONDS_BETWEEN_LINES:
            told_at = time.monotonic()
            say(f"{done} of {len(records)} records decoded")

    answers = decode_records(base, adapter, records, ends, tell)
    lost = search.facts.lost if search.facts is not None else [None] * len(answers)
    whole = [text is None for text in lost]
    return DecodedRecords(
        pairs,
        tuple(base.tokenizer.decode(answer.answer_ids) for answer in answers),
        tuple(answer.answered and ok for answer, ok in zip(answers, whole, strict=True)),
        tuple(answer.recalled and ok for answer, ok in zip(answers, whole, strict=True)),
        search.spec.task.end,
    )
